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
further events. Only building it again, from snapshot and journal, restores a valid state. If the
same event fails again, `skip` leaves it out.

The directory has an id, which `lock`, journal and snapshot repeat. So a file of another learner is
refused, and a missing journal is noticed: an empty one in its place would lose acknowledged events.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dynopt_ray.errors import CheckpointError, DivergedError, LearnerError
from dynopt_ray.online.durable.directory import LearnerDirectory
from dynopt_ray.online.durable.records import Entry, storable, stored_bytes
from dynopt_ray.online.learner import LearnResult, OnlineLearner, Predictor, Rejected

Event = tuple[NDArray[Any], NDArray[Any]]
"""x and y of one call of `learn`, as arrays."""

BuildLearner = Callable[[], OnlineLearner]
"""Builds a learner. Every call must build the same one, so its random draws must be seeded."""

EventResult = LearnResult | DivergedError | None
"""The result of one event; see `Ack`."""

_CLOSED = "the learner was closed"
_MAX_JOURNAL_BYTES = 2**28


@dataclass(frozen=True)
class Ack:
    """The acknowledgement of a call of `DurableLearner.learn`.

    Attributes:
        sequence: the last sequence number that is on disk and learned.
        results: one result per event sent; a `DivergedError` for an event that came when the
            network had diverged. None for an event that was skipped, and for a duplicate, which was
            learned before, unless its result is kept (see `snapshot_every`).
        snapshot_error: why the latest periodic snapshot failed, or None. A failure loses nothing:
            the journal grows until a snapshot succeeds.
    """

    sequence: int
    results: tuple[EventResult, ...]
    snapshot_error: str | None = None


class DurableLearner:
    """An online learner with exactly-once effect.

    Events carry sequence numbers 1, 2, 3 … Each is journaled and synced before it is learned
    and acknowledged. An event that was already learned is ignored, and one that leaves a gap is
    refused. When this object is built again on the same directory after a crash, it loads the
    snapshot and replays the journal. It then equals, bit for bit, a learner that never died.

    Several threads may use the object; each call waits for the one before. They must agree on the
    sequence numbers, because a number that was learned already is taken for a duplicate.

    Args:
        build: builds the learner. Every call must build the same one, so seed its random draws.
        directory: holds `snapshot.safetensors`, `journal` and `lock`; it is created if missing.
            Its files are readable by their owner only.
        snapshot_every: number of events between snapshots, >= 1. A smaller number makes restarts
            faster and learning slower. A journal of more than 256 MiB causes a snapshot too. None
            leaves snapshots to calls of `snapshot`. The results of all events since the last one
            are then kept in memory, also through a restart, and answer duplicates.
        skip: sequence numbers of events that are not learned, because learning them failed. They
            count as quarantined. If the journal holds some of them, a snapshot is written at once,
            after which they need not be named again.

    Raises:
        CheckpointError: the content of the directory is damaged, incomplete, or belongs to
            another learner. If the journal is lost, `drop_journal` allows to continue without it.
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
        snapshot_every: int | None = 1_000,
        skip: Collection[int] = (),
    ) -> None:
        if snapshot_every is not None and snapshot_every < 1:
            raise ValueError(f"DurableLearner: snapshot_every is {snapshot_every}; it must be >= 1")
        self._busy = threading.RLock()
        self._snapshot_every = snapshot_every
        self._skip = frozenset(skip)
        self._broken: str | None = None
        self._snapshot_error: str | None = None
        self._results: dict[int, EventResult] = {}
        with contextlib.ExitStack() as on_failure:
            self._directory = on_failure.enter_context(LearnerDirectory(Path(directory)))
            self._journal = on_failure.enter_context(self._directory.journal())
            self.learner = build()
            self.sequence = self._covered = self._load_snapshot()
            self._catch_up()
            on_failure.pop_all()

    def learn(self, first: int, events: Sequence[Event]) -> Ack:
        """Journal events, then learn from them in order.

        Events that the network cannot learn from are quarantined, and a diverged network is
        reported per event; see `OnlineLearner.learn`. After any other error, the events stay in
        the journal and this object refuses further ones. Correct the cause, such as the optimizer
        or a reaction, and build this object again; it then replays the events. If the event itself
        is the cause, build this object with `skip=[its number]`.

        Args:
            first: sequence number of the first event, from 1; the others follow without gaps.
            events: x and y of each event.

        Raises:
            LearnerError: events before `first` are missing, the events are larger than a record of
                the journal, the disk is full, or the learner failed earlier or was closed. No event
                of this call was learned; send them again once the cause is removed.
            DataError: an event does not consist of numbers, or cannot be kept in a journal. No
                event of this call was learned.
        """
        with self._busy:
            return self._learn(first, events)

    def _learn(self, first: int, events: Sequence[Event]) -> Ack:
        self._refuse_if_broken()
        if first < 1:
            raise LearnerError(f"event {first} was sent, but sequence numbers begin at 1")
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
        for entry in entries:
            stored_bytes(entry.x, entry.y)
        self._journal.append(entries)
        known = [self._results.get(first + index) for index in range(num_known)]
        results = [self._apply(entry) for entry in entries]
        if self._snapshot_is_due():
            self._snapshot_if_possible()
        return Ack(self.sequence, (*known, *results), self._snapshot_error)

    def _snapshot_is_due(self) -> bool:
        if self._snapshot_every is None:
            return False
        is_large = self._journal.num_bytes > _MAX_JOURNAL_BYTES
        return is_large or self.sequence - self._covered >= self._snapshot_every

    def snapshot(self) -> None:
        """Write the whole state, then empty the journal.

        Raises:
            CheckpointError: the snapshot could not be written, or the journal could not be
                emptied. The files in the directory are still valid.
            LearnerError: the learner failed at an earlier event, or was closed.
        """
        with self._busy:
            self._refuse_if_broken()
            self._directory.write_snapshot(self.sequence, self.learner.state_dict())
            self._covered = self.sequence
            self._results.clear()
            self._snapshot_error = None
            # A crash at this point leaves entries that the snapshot covers; `_catch_up` skips them.
            self._journal.restart(self.sequence)

    def freeze(self) -> Predictor:
        """Return an immutable copy of the present network, which can only predict."""
        with self._busy:
            return self.learner.freeze()

    def close(self) -> None:
        """Release the directory. All acknowledged events are on disk already."""
        with self._busy:
            if self._broken != _CLOSED:
                self._broken = _CLOSED
                self._journal.close()
                self._directory.close()

    def __enter__(self) -> "DurableLearner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise LearnerError(self._broken)

    def _load_snapshot(self) -> int:
        snapshot = self._directory.read_snapshot()
        if snapshot is None:
            return 0
        sequence, state = snapshot
        self.learner.load_state_dict(state)
        return sequence

    def _catch_up(self) -> None:
        if self._journal.base > self.sequence:
            raise CheckpointError(
                f"{self._directory.path}: the journal begins after event {self._journal.base}, but "
                f"the snapshot ends at event {self.sequence}; restore the snapshot that belongs to "
                "this journal"
            )
        if self._journal.last < self.sequence:
            # Events are in the journal before a snapshot covers them.
            raise CheckpointError(
                f"{self._directory.path}: the journal ends at event {self._journal.last}, but the "
                f"snapshot at event {self.sequence}: it is an older copy, and later events are "
                "missing. Restore the latest journal; if it is lost, see drop_journal"
            )
        skipped = {entry.sequence for entry in self._journal.entries(after=self.sequence)}
        for entry in self._journal.entries(after=self.sequence):
            self._apply(entry)
        if skipped & self._skip:
            self.snapshot()

    def _apply(self, entry: Entry) -> EventResult:
        result: EventResult = None
        try:
            if entry.sequence in self._skip:
                reason = f"event {entry.sequence} of the journal was skipped, as was asked for"
                self.learner.quarantine.add([Rejected(self.learner.events, reason)])
            else:
                result = self.learner.learn(entry.x, entry.y)
        except DivergedError as error:
            # The learner guarantees that it is unchanged, so a replay has the same outcome.
            result = error
        except BaseException as error:
            self._broken = (
                f"learning event {entry.sequence} failed with {type(error).__name__}: "
                f"{error!s:.500}; the event is in the journal; correct the network or the loss and "
                "build the learner again, which replays it. If the event itself is the cause, "
                f"build the learner with skip=[{entry.sequence}]"
            )
            raise
        self.sequence = entry.sequence
        if self._snapshot_every is None:
            self._results[entry.sequence] = result
        return result

    def _snapshot_if_possible(self) -> None:
        try:
            self.snapshot()
        except CheckpointError as error:
            self._snapshot_error = str(error)
