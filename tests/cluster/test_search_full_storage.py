"""A search whose storage is full says so, and what was written before stays valid."""

import resource
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dynopt_ray.cluster import Measurement, search
from dynopt_ray.cluster.trials import TrialFiles
from dynopt_ray.errors import RunError
from dynopt_ray.journals import LocalStore, lines_at, read_journal

SPACE = {"megabytes": [0, 1, 8, 2]}


class Large:
    """A trial with a state of a given size."""

    def __call__(
        self, config: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> Iterator[Measurement]:
        size = config["megabytes"] * 2**20
        for step in range(1 if state is None else state["step"] + 1, 3):
            yield Measurement(
                step=step,
                accuracy=step / 2,
                cost=0.0,
                final=step == 2,
                network=lambda: b"network",
                state=lambda s=step: {  # type: ignore[misc]
                    "step": s,
                    "bulk": torch.zeros(size, dtype=torch.uint8),
                },
            )


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let this process write no file that is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems can be mounted by administrators only")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def check(result: Any, storage: Path, reason: str) -> None:
    """Check that only the trial whose state was too large failed, and what is stored."""
    trials = result.trials.set_index("config.megabytes")
    assert trials["status"].to_dict() == {0: "finished", 1: "finished", 8: "failed", 2: "finished"}
    assert trials["error"][8].startswith("CheckpointError: cannot write ")
    assert trials["error"][8].endswith(f"trials/00002/state-00001.safetensors: {reason}")
    kinds = [record.kind for record in read_journal(lines_at(str(storage)))]
    assert kinds.count("ended") == 4
    assert TrialFiles(LocalStore(storage)).network(result.best.trial) == b"network"
    # Nothing is left of the state that did not fit.
    left = {path.name for path in storage.rglob("*") if path.is_file()}
    assert left == {"journal.jsonl", "network.safetensors"}


def test_a_state_that_does_not_fit_fails_its_trial_alone(small_disk: Path) -> None:
    result = search(Large(), SPACE, searcher="grid", local=True, storage=small_disk)
    check(result, small_disk, "No space left on device")


def test_a_state_over_the_quota_fails_its_trial_alone(tmp_path: Path) -> None:
    with largest_file(4 * 2**20):
        result = search(Large(), SPACE, searcher="grid", local=True, storage=tmp_path)
    check(result, tmp_path, "File too large")


def test_a_journal_that_cannot_grow_ends_the_search_which_continues_later(tmp_path: Path) -> None:
    space = {"x": list(range(40))}

    def trial(config: Any) -> dict[str, float]:
        return {"accuracy": config["x"]}

    undisturbed = search(trial, space, searcher="grid", local=True)
    message = "cannot write to .*journal.jsonl: File too large; what was written before is safe"
    with largest_file(6_000), pytest.raises(RunError, match=message):
        search(trial, space, searcher="grid", local=True, storage=tmp_path)
    assert 5_000 < (tmp_path / "journal.jsonl").stat().st_size <= 6_000
    ended = sum(record.kind == "ended" for record in read_journal(lines_at(str(tmp_path))))
    assert 3 < ended < 40
    result = search(trial, space, searcher="grid", local=True, storage=tmp_path)
    assert result.trials.equals(undisturbed.trials)
