"""The directory of Ray's own files: other users cannot reach it, and nothing is left of it."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynopt_ray.cluster.sessions import private_directory as module
from dynopt_ray.cluster.sessions.private_directory import check_length, private_directory
from dynopt_ray.errors import ClusterError
from tests.processes import hears_ctrl_c

ROOT = Path(__file__).parents[2]
NOBODY = 65534

SESSION = """
import sys, time
from dynopt_ray.cluster import session
with session(num_cpus=1):
    print("up", flush=True)
    sys.stdin.readline()
"""

INTRUDER = """
import json, os, sys
nobody = int(sys.argv[1])
os.setgroups([])
os.setgid(nobody)
os.setuid(nobody)
reached = []
for path in json.load(sys.stdin):
    for attempt in (
        lambda: os.listdir(path),
        lambda: open(path, "rb"),
        lambda: open(path, "ab"),
        lambda: os.rename(path, path + ".moved"),
        lambda: os.unlink(path),
        lambda: open(path + "/planted", "w"),
        lambda: os.stat(path + "/."),
    ):
        try:
            attempt()
        except OSError:
            continue
        reached.append(path)
print(json.dumps(reached))
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a short path, in which every user may write, like /tmp."""
    made = Path("/tmp") / f"p{os.getpid()}"
    made.mkdir()
    made.chmod(0o1777)
    monkeypatch.setenv("RAY_TMPDIR", str(made))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def running(place: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process with a session, which ends when it gets a line of input."""
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "RAY_TMPDIR": str(place),
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        },
        preexec_fn=hears_ctrl_c,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def below(place: Path) -> list[str]:
    (directory,) = place.iterdir()
    return [str(directory), *(str(path) for path in directory.rglob("*"))]


@pytest.mark.ray
def test_nobody_else_reaches_the_files_of_a_session(
    running: "subprocess.Popen[str]", place: Path
) -> None:
    paths = below(place)
    assert sum(stat.S_ISSOCK(os.lstat(path).st_mode) for path in paths) >= 2
    assert stat.S_IMODE(os.lstat(paths[0]).st_mode) == 0o700
    if os.geteuid() == 0:
        done = subprocess.run(
            [sys.executable, "-I", "-c", INTRUDER, str(NOBODY)],
            input=json.dumps(paths),
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == []
    running.communicate("\n", timeout=60)
    assert running.returncode == 0
    assert list(place.iterdir()) == []


@pytest.mark.ray
def test_ctrl_c_leaves_no_directory(running: "subprocess.Popen[str]", place: Path) -> None:
    assert below(place)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert list(place.iterdir()) == []


def test_a_directory_is_removed_with_everything_in_it(place: Path) -> None:
    with private_directory() as directory:
        (directory / "logs").mkdir()
        (directory / "logs" / "a").write_text("x")
        assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed(place: Path) -> None:
    abandoned, foreign = place / "ray-abcdefgh", place / "ray-ijklmnop"
    for directory in (abandoned, foreign):
        directory.mkdir()
        (directory / "file").touch()
    (abandoned / "in_use").touch()
    for directory in (abandoned, foreign):
        os.utime(directory, (0, 0))
    with private_directory() as first:
        os.utime(first.parent, (0, 0))  # old, but in use
        with private_directory() as second:
            assert sorted(place.iterdir()) == sorted([foreign, first.parent, second.parent])
    assert list(place.iterdir()) == [foreign]  # nothing shows that it was made by a session


def test_a_directory_that_is_just_being_made_stays(place: Path) -> None:
    young = place / "ray-abcdefgh"
    young.mkdir()
    (young / "in_use").touch()
    assert time.time() - young.stat().st_mtime < module._SURELY_LOCKED_S
    with private_directory():
        pass
    assert list(place.iterdir()) == [young]


def test_a_place_with_a_long_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = Path("/" + "x" * 27)
    check_length(longest)
    with pytest.raises(ClusterError, match=r"at most 28 characters, e\.g\. /tmp"):
        check_length(Path(f"{longest}y"))
    monkeypatch.setenv("RAY_TMPDIR", f"{longest}y")
    with pytest.raises(ClusterError, match="too long for Ray's sockets"), private_directory():
        pass
