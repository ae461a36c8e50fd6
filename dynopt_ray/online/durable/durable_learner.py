"""A learner that survives the death of its process, with a snapshot and a journal in a directory.

An `OnlineLearner` is deterministic: its state after event n follows, bit for bit, from its state
after an earlier event s and the events s + 1 … n. The directory holds both parts: the snapshot is
the state after event s, and the journal has the events that came later. The order of writing keeps
this true whenever the process dies:

- An event is synced to the journal before it is learned and acknowledged. So every acknowledged
  event can be replayed.
- A snapshot is written completely before the journal is emptied. A crash between the two leaves
  events in the journal that the snapshot covers. A replay recognises them by their sequence
  numbers and skips them.

A sender that has received no acknowledgement sends its events again. Sequence numbers that were
already learned are ignored and gaps are refused, so each event takes effect exactly once.

Events that the learner quarantines, and events at which it reports divergence, have the same
outcome in a replay. After any other error the network may be half updated, so the object refuses
further events. Only building it again, from snapshot and journal, restores a valid state.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dynopt_ray.errors import CheckpointError, DivergedError, LearnerError
from dynopt_ray.online.durable.journal import Entry, Journal, storable
from dynopt_ray.online.learner import LearnResult, OnlineLearner, Predictor
from dynopt_ray.storage import read_state, remove_temporaries, write_state

Event = tuple[NDArray[Any], NDArray[Any]]
"""x and y of one call of `learn`, as arrays."""

BuildLearner = Callable[[], OnlineLearner]
"""Builds a learner. Every call must build the same one, so its random draws must be seeded."""

_CLOSED = "the learner was closed"
_KIND = "durable learner"
_SNAPSHOT, _JOURNAL = "snapshot.safetensors", "journal"


@dataclass(frozen=True)
class Ack:
    """The acknowledgement of a call of `DurableLearner.learn`.

    Attributes:
        sequence: the last sequence number that is on disk and learned.
        results: one result per event sent. None for a duplicate, which was learned before, and a
            `DivergedError` for an event that came when the network had diverged.
        snapshot_error: why the latest periodic snapshot failed, or None. A failure loses nothing:
            the journal grows until a snapshot succeeds.
    """

    sequence: int
    results: tuple[LearnResult | DivergedError | None, ...]
    snapshot_error: str | None = None


class DurableLearner:
    """An online learner with exactly-once effect.

    Events carry sequence numbers 1, 2, 3 … Each is journaled and synced before it is learned
    and acknowledged. An event that was already learned is ignored, and one that leaves a gap is
    refused. When this object is built again on the same directory after a crash, it loads the
    snapshot and replays the journal. It then equals, bit for bit, a learner that never died.

    Args:
        build: builds the learner. Every call must build the same one, so seed its random draws.
        directory: holds `snapshot.safetensors`, `journal` and `lock`; it is created if missing.
        snapshot_every: number of events between snapshots, >= 1. A smaller number makes restarts
            faster and learning slower.

    Raises:
        CheckpointError: the content of the directory is damaged, or belongs to another kind of
            learner.
        LearnerError: another process has the directory open.
        ValueError: `snapshot_every` is below 1.

    Attributes:
        learner: the learner. Do not call its `learn` directly: the event would not be journaled.
        sequence: the last sequence number that is on disk and learned.
    """

    def __init__(
        self,
        build: BuildLearner,
        directory: str | os.PathLike[str],
        *,
        snapshot_every: int = 1_000,
    ) -> None:
        if snapshot_every < 1:
            raise ValueError(f"DurableLearner: snapshot_every is {snapshot_every}; it must be >= 1")
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._directory / "lock")
        self._snapshot_every = snapshot_every
        self._broken: str | None = None
        self._snapshot_error: str | None = None
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(os.close, self._lock)
            for name in (_SNAPSHOT, _JOURNAL):
                remove_temporaries(self._directory / name)  # the lock excludes other writers
            self.learner = build()
            self.sequence = self._covered = self._load_snapshot()
            self._journal = on_failure.enter_context(Journal(self._directory / _JOURNAL))
            self._catch_up()
            on_failure.pop_all()

    def learn(self, first: int, events: Sequence[Event]) -> Ack:
        """Journal events, then learn from them in order.

        Events that the network cannot learn from are quarantined, and a diverged network is
        reported per event; see `OnlineLearner.learn`. After any other error, the events stay in
        the journal and this object refuses further ones. Correct the cause, such as the optimizer
        or a reaction, and build this object again; it then replays the events.

        Args:
            first: sequence number of the first event; the others follow without gaps.
            events: x and y of each event.

        Raises:
            LearnerError: events before `first` are missing, the disk is full, or the learner
                failed earlier or was closed. No event of this call was learned; send them again
                once the cause is removed.
            DataError: an event does not consist of numbers, or their type cannot be kept in a
                journal. No event of this call was learned.
        """
        self._refuse_if_broken()
        if first > self.sequence + 1:
            raise LearnerError(
                f"event {first} was sent but {self.sequence + 1} is next: events in between are "
                f"missing; send them again from {self.sequence + 1}"
            )
        num_known = min(self.sequence + 1 - first, len(events))
        entries = [
            Entry(first + index, storable("x", x), storable("y", y))
            for index, (x, y) in enumerate(events)
            if index >= num_known
        ]
        self._journal.append(entries)
        results = [self._apply(entry) for entry in entries]
        if self.sequence - self._covered >= self._snapshot_every:
            self._snapshot_if_possible()
        return Ack(self.sequence, (*[None] * num_known, *results), self._snapshot_error)

    def snapshot(self) -> None:
        """Write the whole state, then empty the journal.

        Raises:
            CheckpointError: the snapshot could not be written, or the journal could not be
                emptied. The files in the directory are still valid.
            LearnerError: the learner failed at an earlier event, or was closed.
        """
        self._refuse_if_broken()
        state = {"sequence": self.sequence, "learner": self.learner.state_dict()}
        write_state(self._directory / _SNAPSHOT, state, kind=_KIND)
        self._covered = self.sequence
        self._snapshot_error = None
        # A crash at this point leaves entries that the snapshot covers; `_catch_up` skips them.
        self._journal.restart(self.sequence)

    def freeze(self) -> Predictor:
        """Return an immutable copy of the present network, which can only predict."""
        return self.learner.freeze()

    def close(self) -> None:
        """Release the directory. All acknowledged events are on disk already."""
        if self._broken != _CLOSED:
            self._broken = _CLOSED
            self._journal.close()
            os.close(self._lock)

    def __enter__(self) -> "DurableLearner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise LearnerError(self._broken)

    def _load_snapshot(self) -> int:
        path = self._directory / _SNAPSHOT
        if not path.exists():
            return 0
        state = read_state(path, kind=_KIND)
        self.learner.load_state_dict(state["learner"])
        sequence: int = state["sequence"]
        return sequence

    def _catch_up(self) -> None:
        if self._journal.base > self.sequence:
            raise CheckpointError(
                f"{self._directory}: the journal begins after event {self._journal.base}, but the "
                f"snapshot ends at event {self.sequence}; restore the snapshot that belongs to "
                "this journal"
            )
        for entry in self._journal.entries(after=self.sequence):
            self._apply(entry)
        if self._journal.last < self.sequence:
            self._journal.restart(self.sequence)

    def _apply(self, entry: Entry) -> LearnResult | DivergedError:
        try:
            result: LearnResult | DivergedError = self.learner.learn(entry.x, entry.y)
        except DivergedError as error:
            # The learner guarantees that it is unchanged, so a replay has the same outcome.
            result = error
        except BaseException as error:
            self._broken = (
                f"learning event {entry.sequence} failed with {type(error).__name__}: {error}; "
                "the event is in the journal; correct the network or the loss and build the "
                "learner again, which replays it"
            )
            raise
        self.sequence = entry.sequence
        return result

    def _snapshot_if_possible(self) -> None:
        try:
            self.snapshot()
        except CheckpointError as error:
            self._snapshot_error = str(error)


def _locked(path: Path) -> int:
    """Return the descriptor of an exclusive lock, which is released however the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise LearnerError(
                f"{path.parent} cannot be locked: {error.strerror}; choose a directory on a file "
                "system that has locks"
            ) from error
        raise LearnerError(
            f"{path.parent} is in use by another process; two learners on one journal would "
            "overwrite each other's events. End that process or choose another directory"
        ) from None
    return descriptor
