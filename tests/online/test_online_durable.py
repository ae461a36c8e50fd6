import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dynopt_ray.errors import CheckpointError, DataError, DivergedError, LearnerError
from dynopt_ray.online import DurableLearner, Guard, LearnResult, OnlineLearner, drop_journal
from dynopt_ray.online.durable.durable_learner import Event
from tests.online.durable_learners import build, contents, events, state_bytes, undisturbed

_OPEN: list[DurableLearner] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Whatever a test opens is closed after it."""
    yield
    while _OPEN:
        _OPEN.pop().close()


def opened(
    directory: Path, *, snapshot_every: int = 7, build: Callable[[], OnlineLearner] = build
) -> DurableLearner:
    _OPEN.append(DurableLearner(build, directory, snapshot_every=snapshot_every))
    return _OPEN[-1]


def test_a_durable_learner_learns_like_a_plain_one(tmp_path: Path) -> None:
    stream = events(50)
    durable = opened(tmp_path / "d")
    for first in range(0, 50, 5):
        ack = durable.learn(1 + first, stream[first : first + 5])
        assert ack.sequence == durable.sequence == first + 5
        assert len(ack.results) == 5
    assert state_bytes(durable, tmp_path) == undisturbed(stream, tmp_path)
    assert durable.learner.quarantine.total == 1


def test_a_crash_at_any_point_loses_and_repeats_nothing(tmp_path: Path) -> None:
    stream = events(30)
    durable = opened(tmp_path / "d")
    wanted = undisturbed(stream, tmp_path)
    for first in range(0, 30, 3):
        durable.learn(1 + first, stream[first : first + 3])
        # What is on disk now is what a killed process leaves behind.
        crashed = tmp_path / f"crashed-{first}"
        shutil.copytree(tmp_path / "d", crashed)
        revived = opened(crashed)
        assert revived.sequence == first + 3
        # The sender did not hear the acknowledgement: it sends the last batch again, and more.
        ack = revived.learn(1 + first, stream[first:])
        assert ack.results[:3] == (None, None, None)
        assert ack.sequence == 30
        assert state_bytes(revived, tmp_path) == wanted
        revived.close()


def test_a_crash_between_snapshot_and_journal_is_harmless(tmp_path: Path) -> None:
    stream = events(20)
    durable = opened(tmp_path / "d", snapshot_every=100)
    durable.learn(1, stream[:12])
    journal = (tmp_path / "d" / "journal").read_bytes()
    durable.snapshot()
    durable.close()
    (tmp_path / "d" / "journal").write_bytes(journal)
    revived = opened(tmp_path / "d")
    assert revived.sequence == 12
    revived.learn(13, stream[12:])
    assert state_bytes(revived, tmp_path) == undisturbed(stream, tmp_path)


def test_a_journal_older_than_the_snapshot_is_refused(tmp_path: Path) -> None:
    """It is a copy from before; the latest one may have had events after the snapshot."""
    stream = events(20)
    durable = opened(tmp_path / "d", snapshot_every=100)
    durable.learn(1, stream[:5])
    journal = (tmp_path / "d" / "journal").read_bytes()
    durable.learn(6, stream[5:12])
    durable.snapshot()
    durable.learn(13, stream[12:])
    durable.close()
    (tmp_path / "d" / "journal").write_bytes(journal)
    before = contents(tmp_path / "d")
    with pytest.raises(CheckpointError, match=r"ends at event 5, but the snapshot at event 12"):
        opened(tmp_path / "d")
    assert contents(tmp_path / "d") == before
    # Whoever has no better copy can continue from the snapshot.
    assert drop_journal(tmp_path / "d") == 12
    revived = opened(tmp_path / "d")
    assert revived.sequence == 12
    revived.learn(13, stream[12:])
    assert state_bytes(revived, tmp_path) == undisturbed(stream, tmp_path)


def test_a_crash_in_the_middle_of_a_write_drops_what_was_not_acknowledged(tmp_path: Path) -> None:
    stream = events(12)
    durable = opened(tmp_path / "d", snapshot_every=100)
    durable.learn(1, stream[:8])
    durable.learn(9, stream[8:])
    durable.close()
    path = tmp_path / "d" / "journal"
    path.write_bytes(path.read_bytes()[:-5])
    revived = opened(tmp_path / "d")
    assert revived.sequence == 8
    revived.learn(9, stream[8:])
    assert state_bytes(revived, tmp_path) == undisturbed(stream, tmp_path)


def test_duplicates_are_ignored_and_gaps_refused(tmp_path: Path) -> None:
    stream = events(10)
    durable = opened(tmp_path / "d")
    durable.learn(1, stream[:4])
    before = state_bytes(durable, tmp_path)
    assert durable.learn(2, stream[1:3]).results == (None, None)
    for first in (6, 7):
        with pytest.raises(LearnerError, match=f"event {first} was sent but 5 is next"):
            durable.learn(first, stream[first - 1 :])
    assert state_bytes(durable, tmp_path) == before
    assert durable.learn(3, stream[2:6]).results[:2] == (None, None)
    assert durable.sequence == 6
    assert state_bytes(durable, tmp_path) == undisturbed(stream[:6], tmp_path)


def test_a_snapshot_empties_the_journal_and_bounds_it(tmp_path: Path) -> None:
    durable = opened(tmp_path / "d", snapshot_every=10)
    sizes = []
    for first, event in enumerate(events(60), start=1):
        durable.learn(first, [event])
        sizes.append((tmp_path / "d" / "journal").stat().st_size)
    assert sizes[9] == sizes[59] == 36
    assert max(sizes) < 36 + 10 * 100


def test_two_processes_cannot_share_a_directory(tmp_path: Path) -> None:
    durable = opened(tmp_path / "d")
    with pytest.raises(LearnerError, match="in use by another process"):
        opened(tmp_path / "d")
    durable.close()
    opened(tmp_path / "d").close()
    with pytest.raises(LearnerError, match="was closed"):
        durable.learn(1, events(1))


def test_a_diverged_network_is_reported_per_event_and_replayed_alike(tmp_path: Path) -> None:
    def broken() -> OnlineLearner:
        learner = build()
        next(learner.model.parameters()).data.fill_(np.inf)
        return learner

    durable = opened(tmp_path / "d", build=broken)
    ack = durable.learn(1, events(3))
    assert all(isinstance(result, DivergedError) for result in ack.results)
    durable.close()
    assert opened(tmp_path / "d", build=broken).sequence == 3


def test_events_refused_in_training_are_quarantined_and_replayed_alike(tmp_path: Path) -> None:
    def with_batch_norm() -> OnlineLearner:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
        return OnlineLearner(model, torch.optim.Adam(model.parameters()), guard=Guard(window=8))

    x = np.random.default_rng(0).normal(size=(20, 4, 4)).astype(np.float32)
    stream: list[Event] = [(rows, rows[:, :3].argmax(axis=1)) for rows in x]
    # A single event through BatchNorm cannot be learned in train mode.
    stream[5] = (x[5, 0], np.asarray(1))
    durable = opened(tmp_path / "d", snapshot_every=100, build=with_batch_norm)
    results = durable.learn(1, stream).results
    assert [bool(r.rows) for r in results if isinstance(r, LearnResult)] == [
        index != 5 for index in range(20)
    ]
    before = state_bytes(durable, tmp_path)
    durable.close()
    revived = opened(tmp_path / "d", build=with_batch_norm)
    assert state_bytes(revived, tmp_path) == before


@pytest.mark.parametrize("layout", ["backwards", "transposed", "big-endian", "read-only"])
def test_a_replay_sees_the_same_arrays_as_the_learner_did(layout: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    x = {"backwards": x[:, ::-1], "transposed": x.T, "big-endian": x.astype(">f4")}.get(layout, x)
    if layout == "read-only":
        x.flags.writeable = False
    durable = opened(tmp_path / "d")
    (result,) = durable.learn(1, [(x, np.arange(4) % 3)]).results
    assert isinstance(result, LearnResult)
    assert result.rows == (0, 1, 2, 3)
    before = state_bytes(durable, tmp_path)
    durable.close()
    assert state_bytes(opened(tmp_path / "d"), tmp_path) == before


def test_what_the_journal_cannot_keep_is_refused_before_anything_is_learned(
    tmp_path: Path,
) -> None:
    durable = opened(tmp_path / "d")
    before = state_bytes(durable, tmp_path)
    good = events(1)[0]
    for bad in ((good[0], np.asarray(1, dtype=np.uint64)), (np.asarray(["a"]), good[1])):
        with pytest.raises(DataError, match=r"is an array of .*convert it to one of"):
            durable.learn(1, [good, bad])
    assert durable.sequence == 0
    assert state_bytes(durable, tmp_path) == before
    assert durable.learn(1, [good]).sequence == 1


def test_a_learner_that_fails_stops_until_it_is_mended(tmp_path: Path) -> None:
    def with_loss(fails: bool) -> OnlineLearner:
        learner = build()
        if fails:
            learner.optimizer.register_step_pre_hook(fail)
        return learner

    def fail(*_: object) -> None:
        raise ZeroDivisionError("no step")

    stream = events(4)
    durable = opened(tmp_path / "d", build=lambda: with_loss(True))
    with pytest.raises(ZeroDivisionError, match="no step"):
        durable.learn(1, stream[:2])
    with pytest.raises(LearnerError, match=r"event 1 failed with ZeroDivisionError"):
        durable.learn(1, stream[:2])
    durable.close()
    with pytest.raises(ZeroDivisionError, match="no step"):
        opened(tmp_path / "d", build=lambda: with_loss(True))
    mended = opened(tmp_path / "d", build=lambda: with_loss(False))
    assert mended.sequence == 2
    mended.learn(3, stream[2:])
    assert state_bytes(mended, tmp_path) == undisturbed(stream, tmp_path)


def test_a_full_disk_delays_snapshots_but_loses_nothing(tmp_path: Path) -> None:
    stream = events(40)
    durable = opened(tmp_path / "d", snapshot_every=5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
    try:
        error = durable.learn(1, stream[:20]).snapshot_error
        assert error is not None
        assert "File too large" in error
        with pytest.raises(CheckpointError, match="File too large"):
            durable.snapshot()
        with pytest.raises(LearnerError, match="were not accepted"):
            durable.learn(21, events(4_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert durable.sequence == 20
    durable.close()
    revived = opened(tmp_path / "d", snapshot_every=5)
    assert revived.learn(21, stream[20:]).snapshot_error is None
    assert state_bytes(revived, tmp_path) == undisturbed(stream, tmp_path)


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), KeyboardInterrupt("stop")])
def test_a_journal_that_could_not_be_emptied_loses_no_event(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = events(12)
    durable = opened(tmp_path / "d", snapshot_every=100)
    durable.learn(1, stream[:5])
    syncs = iter([None, failure])

    def sync_directory(_: Path) -> None:
        if (happens := next(syncs, None)) is not None:
            raise happens

    with monkeypatch.context() as patch:
        # The first sync is of the snapshot, the second of the journal.
        patch.setattr("dynopt_ray.storage.sync_directory", sync_directory)
        with pytest.raises(
            (CheckpointError, KeyboardInterrupt), match=r"Input/output error|^stop$"
        ):
            durable.snapshot()
    assert durable.learn(6, stream[5:8]).sequence == 8
    durable.close()
    revived = opened(tmp_path / "d")
    assert revived.sequence == 8
    revived.learn(9, stream[8:])
    assert state_bytes(revived, tmp_path) == undisturbed(stream, tmp_path)


def test_a_learner_that_failed_or_was_closed_writes_no_snapshot(tmp_path: Path) -> None:
    durable = opened(tmp_path / "d")
    durable.learn(1, events(5))

    def fail(*_: object) -> None:
        raise ZeroDivisionError("half a step")

    hook = durable.learner.optimizer.register_step_post_hook(fail)
    with pytest.raises(ZeroDivisionError, match="half a step"):
        durable.learn(6, events(1))
    hook.remove()
    # The weights are those of half an event.
    with pytest.raises(LearnerError, match="event 6 failed"):
        durable.snapshot()
    assert not (tmp_path / "d" / "snapshot.safetensors").exists()
    durable.close()
    with pytest.raises(LearnerError, match="was closed"):
        durable.snapshot()


def test_a_damaged_snapshot_is_refused_and_the_lock_let_go(tmp_path: Path) -> None:
    durable = opened(tmp_path / "d")
    durable.learn(1, events(10))
    durable.close()
    path = tmp_path / "d" / "snapshot.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    for _ in range(2):
        with pytest.raises(CheckpointError, match="truncated"):
            opened(tmp_path / "d")
    path.unlink()
    with pytest.raises(CheckpointError, match="the journal begins after event 10"):
        opened(tmp_path / "d")
    path.write_bytes(data)
    assert opened(tmp_path / "d").sequence == 10


def test_a_frozen_copy_serves_while_learning_goes_on(tmp_path: Path) -> None:
    durable = opened(tmp_path / "d")
    frozen = durable.freeze()
    x = np.ones(4, dtype=np.float32)
    before = frozen.predict(x)
    durable.learn(1, events(5))
    assert torch.equal(frozen.predict(x), before)
    assert not torch.equal(durable.freeze().predict(x), before)


_CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from test_online_durable import events, opened
from pathlib import Path
durable = opened(Path(sys.argv[1]))
for sequence, event in enumerate(events(25), start=1):
    durable.learn(sequence, [event])
    print(sequence, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_kill_9_everything_acknowledged_is_there(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "d"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert child.returncode == -9, child.stderr
    assert child.stdout.split()[-1] == "25"
    revived = opened(tmp_path / "d")
    assert revived.sequence == 25
    assert state_bytes(revived, tmp_path) == undisturbed(events(25), tmp_path)


def test_a_directory_that_cannot_be_locked_is_not_said_to_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(LearnerError, match="cannot be locked: No locks available"):
        opened(tmp_path / "d")
