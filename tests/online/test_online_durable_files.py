"""The directory of a learner: nothing acknowledged vanishes, whatever happens to its files."""

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dynopt_ray.errors import CheckpointError, DataError, LearnerError
from dynopt_ray.online import DurableLearner, Event, LearnResult, OnlineLearner, drop_journal
from tests.online.durable_learners import build, contents, events, state_bytes, undisturbed


def learned(directory: Path, num_events: int, *, snapshot: bool = False) -> None:
    """Leave the directory of a learner that has learned so many events."""
    with DurableLearner(build, directory, snapshot_every=1_000) as durable:
        durable.learn(1, events(num_events))
        if snapshot:
            durable.snapshot()
            durable.learn(num_events + 1, events(num_events + 5)[num_events:])


def refused(directory: Path, match: str) -> None:
    before = contents(directory)
    with pytest.raises(CheckpointError, match=match):
        DurableLearner(build, directory)
    assert contents(directory) == before


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_missing_journal_is_noticed(snapshot: bool, tmp_path: Path) -> None:
    learned(tmp_path, 20, snapshot=snapshot)
    (tmp_path / "journal").unlink()
    refused(tmp_path, "journal is missing|is missing, and its events with it")
    # Nor is it taken for a new directory if the lock file is gone too, as the snapshot is there.
    (tmp_path / "lock").unlink()
    if snapshot:
        (tmp_path / "lock").touch()
        refused(tmp_path, "is missing, and its events with it")


def test_a_lost_journal_can_be_given_up(tmp_path: Path) -> None:
    learned(tmp_path, 20, snapshot=True)
    (tmp_path / "journal").unlink()
    assert drop_journal(tmp_path) == 20
    with DurableLearner(build, tmp_path) as durable:
        assert durable.sequence == 20
        durable.learn(21, events(30)[20:])
        assert state_bytes(durable, tmp_path) == undisturbed(events(30), tmp_path)


def test_a_journal_is_given_up_only_where_a_snapshot_is(tmp_path: Path) -> None:
    learned(tmp_path, 20)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="has no snapshot to continue from"):
        drop_journal(tmp_path)
    assert contents(tmp_path) == before
    with (
        DurableLearner(build, tmp_path),
        pytest.raises(LearnerError, match="in use by another process"),
    ):
        drop_journal(tmp_path)


@pytest.mark.parametrize("name", ["journal", "snapshot.safetensors"])
@pytest.mark.parametrize("with_lock", [True, False])
def test_a_file_of_another_learner_is_refused(name: str, with_lock: bool, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for directory in (mine, other):
        learned(directory, 20, snapshot=True)
    (mine / name).write_bytes((other / name).read_bytes())
    if not with_lock:
        (mine / "lock").write_bytes(b"")
    before = {name: data for name, data in contents(mine).items() if name != "lock"}
    with pytest.raises(CheckpointError, match="belongs to another learner"):
        DurableLearner(build, mine)
    assert before.items() <= contents(mine).items()


def test_a_deleted_snapshot_is_noticed_unless_the_journal_has_everything(tmp_path: Path) -> None:
    learned(tmp_path, 20)
    journal = (tmp_path / "journal").read_bytes()
    with DurableLearner(build, tmp_path) as durable:
        durable.snapshot()
    (tmp_path / "snapshot.safetensors").unlink()
    refused(tmp_path, "the journal begins after event 20, but the snapshot ends at event 0")
    # The journal from before the snapshot was emptied by nobody: all events are there.
    (tmp_path / "journal").write_bytes(journal)
    with DurableLearner(build, tmp_path) as durable:
        assert state_bytes(durable, tmp_path) == undisturbed(events(20), tmp_path)


def test_a_damaged_lock_file_is_refused_and_an_emptied_one_is_written_again(tmp_path: Path) -> None:
    learned(tmp_path, 20, snapshot=True)
    text = (tmp_path / "lock").read_bytes()
    (tmp_path / "lock").write_bytes(b"something else")
    refused(tmp_path, "lock is damaged: it does not hold the id of a learner")
    (tmp_path / "lock").write_bytes(b"")
    with DurableLearner(build, tmp_path) as durable:
        assert durable.sequence == 25
    assert (tmp_path / "lock").read_bytes() == text


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "lock").symlink_to(victim)
    with pytest.raises(LearnerError, match="symbolic link"):
        DurableLearner(build, tmp_path / "d")
    assert victim.read_bytes() == b""


def test_all_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    learned(tmp_path, 5, snapshot=True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("lock", "journal", "snapshot.safetensors"), 0o600)


def test_threads_learn_every_event_once_and_in_order(tmp_path: Path) -> None:
    stream, num_threads = events(200), 8
    accepted: list[int] = []
    with DurableLearner(build, tmp_path, snapshot_every=7) as durable:

        def send(thread: int) -> None:
            # Each thread owns every eighth event. Those before it may not have been learned yet.
            for sequence in range(1 + thread, 201, num_threads):
                while True:
                    try:
                        ack = durable.learn(sequence, [stream[sequence - 1]])
                    except LearnerError as error:
                        assert "events in between are missing" in str(error)  # noqa: PT017
                        continue
                    accepted.extend([sequence] * (ack.results[0] is not None))
                    break

        threads = [threading.Thread(target=send, args=(thread,)) for thread in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(accepted) == list(range(1, 201))
        assert durable.sequence == durable.learner.events == 200
        assert state_bytes(durable, tmp_path) == undisturbed(stream, tmp_path)
    with DurableLearner(build, tmp_path) as durable:
        assert state_bytes(durable, tmp_path) == undisturbed(stream, tmp_path)


def test_a_number_taken_by_several_threads_is_learned_once(tmp_path: Path) -> None:
    """Whoever comes second sent a duplicate, as far as numbers say."""
    with DurableLearner(build, tmp_path) as durable:
        learned: list[int] = []

        def send() -> None:
            for _ in range(50):
                ack = durable.learn(durable.sequence + 1, events(1))
                learned.extend([ack.sequence] * (ack.results[0] is not None))

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(learned) == durable.sequence == durable.learner.events
        assert durable.sequence >= 50


class Fussy(nn.Module):
    """A network that fails at events of a certain kind."""

    def __init__(self, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 100).any()):
            raise self.error()
        output: torch.Tensor = self.layer(x)
        return output


def fussy(error: Callable[[], BaseException]) -> Callable[[], OnlineLearner]:
    def made() -> OnlineLearner:
        torch.manual_seed(0)
        model = Fussy(error)
        return OnlineLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))

    return made


POISON: Event = (np.full(4, 1_000, np.float32), np.asarray(1))


class UnexpectedError(Exception):
    """An error of the network's own."""


@pytest.mark.parametrize("kind", [KeyError, AssertionError, AttributeError, UnexpectedError])
def test_an_event_at_which_the_network_raises_anything_is_quarantined(
    kind: type[Exception], tmp_path: Path
) -> None:
    stream = [*events(4), POISON, *events(9)[4:]]
    with DurableLearner(fussy(lambda: kind("of its own")), tmp_path) as durable:
        (result,) = durable.learn(1, stream).results[4:5]
        assert isinstance(result, LearnResult)
        assert "of its own" in result.rejected[0].reason
        assert durable.sequence == 10
        before = state_bytes(durable, tmp_path)
    with DurableLearner(fussy(lambda: kind("of its own")), tmp_path) as durable:
        assert state_bytes(durable, tmp_path) == before


@pytest.mark.parametrize("kind", [MemoryError, OSError])
def test_an_error_of_the_machine_quarantines_nothing(kind: type[Exception], tmp_path: Path) -> None:
    """The next attempt may find memory, or the file."""
    with DurableLearner(fussy(lambda: kind("of the machine")), tmp_path) as durable:
        with pytest.raises(kind, match="of the machine"):
            durable.learn(1, [POISON])
        with pytest.raises(LearnerError, match=r"skip=\[1\]"):
            durable.learn(1, [POISON])
    calm = fussy(lambda: AssertionError())
    with DurableLearner(calm, tmp_path) as durable:
        assert durable.sequence == 1


def test_an_event_that_ends_the_learner_can_be_skipped(tmp_path: Path) -> None:
    def build() -> OnlineLearner:
        learner = fussy(lambda: MemoryError("too large"))()
        return learner

    stream = events(9)
    with DurableLearner(build, tmp_path) as durable:
        durable.learn(1, stream[:4])
        with pytest.raises(MemoryError, match="too large"):
            durable.learn(5, [POISON])
    with pytest.raises(MemoryError, match="too large"):
        DurableLearner(build, tmp_path)
    with DurableLearner(build, tmp_path, skip=[5]) as durable:
        assert durable.sequence == 5
        assert "event 5 of the journal was skipped" in durable.learner.quarantine.latest[0].reason
        # Whoever sent it sends it again, as it was not acknowledged.
        assert durable.learn(5, [POISON, *stream[4:]]).results[0] is None
        before = state_bytes(durable, tmp_path)
    # A snapshot covers it: it need not be named again, and the other events are as ever.
    with DurableLearner(build, tmp_path) as durable:
        assert state_bytes(durable, tmp_path) == before
        twin = build()
        for x, y in stream:
            twin.learn(x, y)
        assert torch.equal(
            durable.learner.model.get_parameter("layer.weight"),
            twin.model.get_parameter("layer.weight"),
        )


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ((np.empty((2**33, 0), np.float32), np.asarray(0)), "a journal keeps at most"),
        ((np.broadcast_to(np.float32(0), (2**31,)), np.asarray(0)), "a journal keeps events of at"),
    ],
)
def test_an_event_that_no_journal_can_hold_changes_nothing(
    event: Event, reason: str, tmp_path: Path
) -> None:
    with DurableLearner(build, tmp_path) as durable:
        durable.learn(1, events(3))
        before = contents(tmp_path)
        with pytest.raises(DataError, match=reason):
            durable.learn(4, [events(1)[0], event])
        assert contents(tmp_path) == before
        assert durable.learn(4, events(5)[3:]).sequence == 5


def test_events_without_numbers_do_not_take_forever(tmp_path: Path) -> None:
    """Each of its thousand million rows would be tested alone."""
    rows = np.empty((10**9, 0), np.float32)
    with DurableLearner(build, tmp_path) as durable:
        for y in (rows, np.asarray(0)):
            (result,) = durable.learn(durable.sequence + 1, [(rows, y)]).results
            assert isinstance(result, LearnResult)
            assert len(result.rejected) == 1
        assert durable.learner.events == 2
    with DurableLearner(build, tmp_path) as durable:
        assert durable.learner.events == 2


def test_a_large_journal_causes_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynopt_ray.online.durable.durable_learner._MAX_JOURNAL_BYTES", 500)
    with DurableLearner(build, tmp_path, snapshot_every=10_000) as durable:
        for first, event in enumerate(events(60), start=1):
            durable.learn(first, [event])
            assert (tmp_path / "journal").stat().st_size < 700
    assert (tmp_path / "snapshot.safetensors").exists()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LearnerError, match=r"cannot use .* as the directory of a learner"):
        DurableLearner(build, tmp_path / "file" / "d")
    assert os.listdir(tmp_path) == ["file"]
