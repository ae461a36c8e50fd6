"""When a durable learner writes snapshots, and what it tells of those that fail."""

import resource
from pathlib import Path

import pytest

from dynopt_ray.online import DurableLearner
from dynopt_ray.storage import read_state
from tests.online.durable_learners import build, events

EVENTS = events(60)


def covered(directory: Path) -> int:
    """The last event that the snapshot on disk covers; 0 without a snapshot."""
    path = directory / "snapshot.safetensors"
    return read_state(path, kind="durable learner")["sequence"] if path.exists() else 0


def test_snapshots_come_every_so_many_events(tmp_path: Path) -> None:
    found = []
    with DurableLearner(build, tmp_path, snapshot_every=10) as durable:
        for sequence, event in enumerate(EVENTS[:34], start=1):
            durable.learn(sequence, [event])
            found.append(covered(tmp_path))
    assert found == [sequence // 10 * 10 for sequence in range(1, 35)]
    # Built again, it counts from its latest snapshot on.
    with DurableLearner(build, tmp_path, snapshot_every=10) as durable:
        found = []
        for sequence, event in enumerate(EVENTS[34:42], start=35):
            durable.learn(sequence, [event])
            found.append(covered(tmp_path))
    assert found == [30] * 5 + [40] * 3


def test_a_snapshot_by_hand_delays_the_next_one(tmp_path: Path) -> None:
    with DurableLearner(build, tmp_path, snapshot_every=10) as durable:
        durable.learn(1, EVENTS[:6])
        durable.snapshot()
        assert covered(tmp_path) == 6
        durable.learn(7, EVENTS[6:15])
        assert covered(tmp_path) == 6
        durable.learn(16, EVENTS[15:16])
        assert covered(tmp_path) == 16


def test_a_call_of_many_events_is_covered_by_one_snapshot(tmp_path: Path) -> None:
    with DurableLearner(build, tmp_path, snapshot_every=10) as durable:
        durable.learn(1, EVENTS[:25])
        assert covered(tmp_path) == 25
        durable.learn(26, EVENTS[25:34])
        assert covered(tmp_path) == 25


def test_a_snapshot_that_succeeds_takes_the_error_of_the_one_before_back(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with DurableLearner(build, tmp_path, snapshot_every=5) as durable:
        assert durable.learn(1, EVENTS[:4]).snapshot_error is None
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
        try:
            error = durable.learn(5, EVENTS[4:5]).snapshot_error
            assert error is not None
            assert "File too large" in error
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert durable.learn(6, EVENTS[5:6]).snapshot_error is None
        assert covered(tmp_path) == 6
        assert durable.learn(7, EVENTS[6:7]).snapshot_error is None


def test_a_snapshot_by_hand_takes_the_error_back_too(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with DurableLearner(build, tmp_path, snapshot_every=5) as durable:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
        try:
            assert durable.learn(1, EVENTS[:5]).snapshot_error is not None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        durable.snapshot()
        assert durable.learn(6, EVENTS[5:6]).snapshot_error is None
        assert covered(tmp_path) == 5


@pytest.mark.parametrize("sent", [0, 5])
def test_events_are_synced_before_they_are_learned(
    sent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    with DurableLearner(build, tmp_path) as durable:
        durable.learn(1, EVENTS[:sent])
        monkeypatch.setattr("os.fdatasync", lambda _: done.append("synced"))
        durable.learner.optimizer.register_step_post_hook(lambda *_: done.append("learned"))
        durable.learn(sent + 1, EVENTS[sent : sent + 3])
        durable.learn(sent + 4, EVENTS[sent + 3 : sent + 4])
    assert done == ["synced", *["learned"] * 3, "synced", "learned"]
