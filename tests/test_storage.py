"""Files that are replaced atomically: what a killed process leaves behind is removed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dynopt_ray.online import DurableLearner
from dynopt_ray.storage import read_state, replace_file, write_state
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
