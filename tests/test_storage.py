"""Files that are replaced atomically: what a killed process leaves behind is removed."""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.online import DurableLearner
from dynopt_ray.storage import _digest, create_file, read_state, replace_file, write_state
from dynopt_ray.structure import load, save
from tests.online.learners import events, learner

# Writes half of a file, says so, and waits to be killed.
WRITER = """
import sys, time
from pathlib import Path
from dynopt_ray.storage import replace_file

def write(temporary):
    temporary.write_bytes(b"half")
    print("written", flush=True)
    time.sleep(600)

replace_file(Path(sys.argv[1]), write)
"""


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def writer(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that is in the middle of writing `tmp_path / "state"`."""
    yield (process := begun(tmp_path / "state"))
    kill(process)


def kill(process: "subprocess.Popen[str]") -> None:
    with process:  # closes its output and waits
        process.kill()


def begun(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def test_the_next_write_removes_what_a_killed_process_left(
    writer: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    path = tmp_path / "state"
    replace_file(tmp_path / "other", lambda temporary: temporary.touch())
    # A process that still writes is not disturbed.
    write_state(path, {"x": torch.ones(2)}, kind="network")
    assert len(names(tmp_path)) == 3
    kill(writer)
    replace_file(tmp_path / "other", lambda temporary: temporary.touch())
    assert len(names(tmp_path)) == 3
    write_state(path, {"x": torch.ones(2)}, kind="network")
    assert names(tmp_path) == {"state", "other"}
    assert torch.equal(read_state(path, kind="network")["x"], torch.ones(2))


@pytest.mark.parametrize("name", ["snapshot.safetensors", "journal"])
def test_opening_a_learner_removes_what_a_killed_one_left(name: str, tmp_path: Path) -> None:
    DurableLearner(learner, tmp_path).close()
    kill(begun(tmp_path / name))
    # Nor does it matter that another machine wrote it, as the lock excludes other writers.
    (tmp_path / f".{name}.elsewhere.{os.getpid()}.tmp").touch()
    (tmp_path / f".{name}.123.tmp").touch()
    with DurableLearner(learner, tmp_path) as opened:
        opened.learn(1, [(x.numpy(), y.numpy()) for x, y in events(3)])
        assert names(tmp_path) == {"lock", "journal"}
        opened.snapshot()
    assert names(tmp_path) == {"lock", "journal", "snapshot.safetensors"}


WRITES_FOREVER = """
import sys, torch
from dynopt_ray.storage import write_state
state = {"weight": torch.ones(3_000_000)}
print("begun", flush=True)
while True:
    write_state(sys.argv[1], state, kind="network")
"""


def test_a_writer_killed_at_any_moment_leaves_nothing_for_long(tmp_path: Path) -> None:
    """Also not the temporary files that a library would write on its own."""
    path = tmp_path / "state"
    for wait_s in (0.05, 0.11, 0.17):
        command = [sys.executable, "-c", WRITES_FOREVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(wait_s)
            process.kill()
        write_state(path, {"x": torch.ones(2)}, kind="network")
        assert names(tmp_path) == {"state"}


def test_no_library_writes_temporary_files_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would have names that nobody recognises after a kill."""
    found: set[str] = set()

    def looked(source: Path, target: Path) -> None:
        found.update(names(tmp_path))
        os.rename(source, target)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a file is written under another name")

    monkeypatch.setattr(os, "replace", looked)
    monkeypatch.setattr(safetensors.torch, "save_file", refused)
    write_state(tmp_path / "state", {"x": torch.ones(2)}, kind="network")
    assert len(found) == 1
    assert found.pop().startswith(".state.")


def test_what_a_thread_is_writing_is_not_taken_for_a_left_over(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("first")
        replace_file(tmp_path / "state", lambda other: other.write_text("second"))
        assert temporary.exists()

    replace_file(tmp_path / "state", write)
    assert names(tmp_path) == {"state"}
    assert (tmp_path / "state").read_text() == "first"


def test_a_temporary_file_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may look between the two calls."""
    flock, removed = fcntl.flock, list[str]()

    def remove_first(descriptor: int, operation: int) -> None:
        if not removed:
            (temporary,) = tmp_path.iterdir()
            removed.append(temporary.name)
            temporary.unlink()
        flock(descriptor, operation)

    def write(temporary: Path) -> None:
        assert temporary.exists()
        temporary.write_text("all")

    monkeypatch.setattr(fcntl, "flock", remove_first)
    replace_file(tmp_path / "state", write)
    assert removed
    assert names(tmp_path) == {"state"}
    assert (tmp_path / "state").read_text() == "all"


def test_files_are_replaced_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".state.0123.tmp").touch()
    replace_file(tmp_path / "state", lambda temporary: temporary.write_text("all"))
    assert names(tmp_path) == {"state", ".state.0123.tmp"}


def test_a_file_is_made_once_whoever_comes_first(tmp_path: Path) -> None:
    create_file(tmp_path / "f", lambda temporary: temporary.write_text("first"))
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "f", lambda temporary: temporary.write_text("second"))
    assert (tmp_path / "f").read_text() == "first"
    assert names(tmp_path) == {"f"}


def test_threads_that_save_to_one_path_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, failures = tmp_path / "state", list[BaseException]()

    def write(number: int) -> None:
        try:
            for _ in range(20):
                write_state(path, {"x": torch.full((2_000,), number)}, kind="network")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert len(set(read_state(path, kind="network")["x"].tolist())) == 1
    assert not failures
    assert names(tmp_path) == {"state"}


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if somebody could guess the name."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".state.guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "state", lambda temporary: temporary.write_text("ours"))
    assert victim.read_text() == "precious"
    # Nor is a link in the place of the file itself.
    (tmp_path / "link").symlink_to(victim)
    replace_file(tmp_path / "link", lambda temporary: temporary.write_text("ours"))
    assert victim.read_text() == "precious"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o640)])
def test_state_is_private_and_results_follow_the_umask(
    private: bool, mode: int, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "file", lambda temporary: temporary.touch(), private=private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(40, 30)


def test_what_is_loaded_stays_if_its_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "network"
    model, optimizer = network(0), None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 40)).sum().backward()
    optimizer.step()
    save(path, model, optimizer)
    loaded = network(1)
    loaded_optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1, momentum=0.9)
    load(path, loaded, loaded_optimizer)
    state = read_state(path, kind="network")
    with open(path, "r+b") as file:  # as `cp` does it: the same file with other bytes
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded.get_parameter("weight"), model.get_parameter("weight"))
    assert torch.equal(state["tensors"]["weight"], model.get_parameter("weight"))
    for one, other in zip(loaded.parameters(), model.parameters(), strict=True):
        moments = (
            o.state[p]["momentum_buffer"] for o, p in ((loaded_optimizer, one), (optimizer, other))
        )
        assert torch.equal(*moments)


TRUNCATES = """
import os, sys, torch
from dynopt_ray.structure import load, save
path = sys.argv[1]
model = torch.nn.Linear(400, 300)
save(path, model)
loaded = torch.nn.Linear(400, 300)
load(path, loaded)
os.truncate(path, 0)
assert torch.equal(loaded.weight, model.weight)
"""


def test_a_process_survives_that_its_checkpoint_is_truncated(tmp_path: Path) -> None:
    """A file that is mapped into memory would end it by SIGBUS."""
    subprocess.run([sys.executable, "-c", TRUNCATES, str(tmp_path / "network")], check=True)


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero")
    with pytest.raises(CheckpointError, match=r"cannot read network .*: it is not a file"):
        read_state(path, kind="network")


def forged(path: Path, tree: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Write a file whose checksum is right, whatever it holds."""
    text = tree if isinstance(tree, str) else json.dumps(tree)
    head = {"kind": "network", "version": 1, "sha256": _digest(text, tensors), "state": text}
    safetensors.torch.save_file(tensors, path, {"dynopt_ray": json.dumps(head)})


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"$tensor": "x"}, "b": {"$tensor": "x"}},
        {"a": {"$tensor": "x"}, "b": {"$tensor": "y"}, "c": {"$tensor": "z"}},
        {"a": {"$tensor": "x"}},
        {"a": {"$tensor": ["x"]}, "b": {"$tensor": "y"}},
        [["a", {"$tensor": "x"}], ["b", {"$tensor": "y"}]],
        {"$tensor": "x"},
        {"b" * 100_000: {"$tensor": "b" * 100_000}},
        "[" * 100_000,
        "1" * 10_000,
        "null",
        "",
    ],
    ids=range(11),
)
def test_metadata_and_tensors_that_do_not_belong_together_are_refused(
    tree: Any, tmp_path: Path
) -> None:
    forged(tmp_path / "state", tree, {"x": torch.ones(2), "y": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="has been altered"):
        read_state(tmp_path / "state", kind="network")


@pytest.mark.parametrize("entry", [None, 3, [], "text"])
def test_metadata_of_another_form_are_refused(entry: Any, tmp_path: Path) -> None:
    head = json.dumps(entry)
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "s", {"dynopt_ray": head})
    with pytest.raises(CheckpointError, match="its metadata are damaged"):
        read_state(tmp_path / "s", kind="network")
