import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.online import OnlineLearner, load, save
from dynopt_ray.storage import read_state, write_state

DAMAGED = "truncated|altered|not one that dynopt_ray wrote|holds a|is of version"

STATE: dict[str, Any] = {
    "numbers": [1, 2.5, float("inf"), True, None, "text"],
    "nested": {"weight": torch.randn(3, 4), "list": [torch.arange(3), {"x": torch.tensor(True)}]},
    "empty": {"tensor": torch.empty(0, 3), "dict": {}, "list": []},
    "bfloat16": torch.randn(2, dtype=torch.bfloat16),
}


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """Let the system refuse to make any file longer than this, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def learner() -> OnlineLearner:
    model = nn.Linear(4, 3)
    return OnlineLearner(model, torch.optim.Adam(model.parameters()), detector="adwin")


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write_state(tmp_path / "s", STATE, kind="learner")
    read = read_state(tmp_path / "s", kind="learner")
    torch.testing.assert_close(read["nested"], STATE["nested"], rtol=0, atol=0)
    assert torch.equal(read["bfloat16"], STATE["bfloat16"])
    assert read["numbers"] == STATE["numbers"]
    assert read["empty"]["tensor"].shape == (0, 3)
    assert os.listdir(tmp_path) == ["s"]


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    write_state(tmp_path / "a", STATE, kind="learner")
    write_state(tmp_path / "b", read_state(tmp_path / "a", kind="learner"), kind="learner")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    save(tmp_path / "s", learner())
    data = (tmp_path / "s").read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        (tmp_path / "s").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="truncated, or not the file"):
            read_state(tmp_path / "s", kind="learner")


def test_a_tampered_file_is_refused_wherever_it_is_changed(tmp_path: Path) -> None:
    subject = learner()
    save(tmp_path / "s", subject)
    data = bytearray((tmp_path / "s").read_bytes())
    for place in range(0, len(data), 29):
        changed = data.copy()
        changed[place] ^= 1
        (tmp_path / "s").write_bytes(changed)
        with pytest.raises(CheckpointError, match=DAMAGED):
            load(tmp_path / "s", subject)


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "network", {}, kind="network")
    with pytest.raises(CheckpointError, match="holds a network, but a learner is needed"):
        read_state(tmp_path / "network", kind="learner")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_state(tmp_path / "missing", kind="learner")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="truncated, or not the file"):
        read_state(tmp_path / "pickle", kind="learner")
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="not one that dynopt_ray wrote"):
        read_state(tmp_path / "foreign", kind="learner")
    head = json.dumps({"kind": "learner", "version": 9, "state": "{}", "sha256": ""})
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "newer", {"dynopt_ray": head})
    with pytest.raises(CheckpointError, match=r"version 9; this release reads version 1"):
        read_state(tmp_path / "newer", kind="learner")


@pytest.mark.parametrize("value", [object(), {1: 2}, {"$tensor": "x"}, torch.nn.Linear(1, 1), {1}])
def test_what_would_need_pickle_is_refused_before_anything_is_written(
    value: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"state.part.0"):
        write_state(tmp_path / "s", {"part": [value]}, kind="learner")
    assert not os.listdir(tmp_path)


def test_a_full_disk_keeps_the_previous_snapshot(tmp_path: Path) -> None:
    write_state(tmp_path / "s", {"weight": torch.ones(3)}, kind="learner")
    before = (tmp_path / "s").read_bytes()
    with (
        no_room_beyond(10_000),
        pytest.raises(CheckpointError, match=r"File too large.*previous file is still valid"),
    ):
        write_state(tmp_path / "s", {"weight": torch.ones(9_000)}, kind="learner")
    assert (tmp_path / "s").read_bytes() == before
    assert os.listdir(tmp_path) == ["s"]


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No such file or directory.*; there is none yet"):
        write_state(tmp_path / "missing" / "s", {}, kind="learner")
