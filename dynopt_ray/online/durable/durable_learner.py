"""A learner that survives the death of its process: a snapshot and a journal in a directory."""

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
from dynopt_ray.storage import read_state, write_state

Event = tuple[NDArray[Any], NDArray[Any]]
"""x and y of one call of `learn`, as arrays."""

BuildLearner = Callable[[], OnlineLearner]
"""Makes a learner, the same one at every call: what it draws is seeded."""

_CLOSED = "the learner was closed"
_KIND = "durable learner"


@dataclass(frozen=True)
class Ack:
    """What is durable, and what learning gave.

    Attributes:
        sequence: the last sequence number that is on disk and learned.
        results: one per event sent. None for a duplicate, which was learned before, and a
            `DivergedError` for an event that met a network beyond repair.
        snapshot_error: why the latest periodic snapshot failed, or None. Nothing is lost then:
            the journal keeps growing until one succeeds.
    """

    sequence: int
    results: tuple[LearnResult | DivergedError | None, ...]
    snapshot_error: str | None = None


class DurableLearner:
    """An online learner with exactly-once effect.

    Events carry sequence numbers 1, 2, 3 … Each is journaled and synced before it is learned
    and acknowledged; one that comes again is ignored, and one that leaves a gap is refused.
    Built again on the same directory after a crash, it loads the snapshot, replays the journal
    and is, bit for bit, the learner that never died.

    Args:
        build: makes the learner, the same one every time: seed what it draws.
        directory: holds `snapshot.safetensors`, `journal` and `lock`; made when missing.
        snapshot_every: events between snapshots. More of them make restarts faster and
            learning slower.

    Raises:
        CheckpointError: what the directory holds is damaged or of another kind of learner.
        LearnerError: another process has the directory open.
        ValueError: `snapshot_every` below 1.

    Attributes:
        learner: the learner; do not let it learn behind this object's back.
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
            self.learner = build()
            self.sequence = self._covered = self._load_snapshot()
            self._journal = on_failure.enter_context(Journal(self._directory / "journal"))
            self._catch_up()
            on_failure.pop_all()

    def learn(self, first: int, events: Sequence[Event]) -> Ack:
        """Journal events, then learn from them one after the other.

        What the network cannot learn from is quarantined, and a diverged network is reported
        per event; see `OnlineLearner.learn`. Any other error leaves the events in the journal and
        this object refusing more: correct the optimizer, reaction or whatever raised it and build
        the learner again, which replays them.

        Args:
            first: the sequence number of the first of them; the others follow on.
            events: x and y of each.

        Raises:
            LearnerError: a gap before `first`, a full disk, or a learner that failed before.
                Nothing of this call was learned; send it again when the cause is gone.
            DataError: an event is not numbers of a type that the journal can keep. Nothing of
                this call was learned.
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
            CheckpointError: it could not be written; the one before and the journal are valid.
            LearnerError: the learner failed at an event before, or was closed.
        """
        self._refuse_if_broken()
        state = {"sequence": self.sequence, "learner": self.learner.state_dict()}
        write_state(self._directory / "snapshot.safetensors", state, kind=_KIND)
        self._covered = self.sequence
        self._snapshot_error = None
        # A crash in between leaves entries that the snapshot covers; catching up skips them.
        self._journal.restart(self.sequence)

    def freeze(self) -> Predictor:
        """The network as it is now, as an immutable copy that only predicts."""
        return self.learner.freeze()

    def close(self) -> None:
        """Let go of the directory; everything acknowledged is on disk already."""
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
        path = self._directory / "snapshot.safetensors"
        if not path.exists():
            return 0
        state = read_state(path, kind=_KIND)
        self.learner.load_state_dict(state["learner"])
        sequence: int = state["sequence"]
        return sequence

    def _catch_up(self) -> None:
        if self._journal.base > self.sequence:
            raise CheckpointError(
                f"{self._directory}: the journal begins after event {self._journal.base} but the "
                f"snapshot ends at {self.sequence}; restore the snapshot that belongs to it"
            )
        for entry in self._journal.entries(after=self.sequence):
            self._apply(entry)
        if self._journal.last < self.sequence:
            self._journal.restart(self.sequence)

    def _apply(self, entry: Entry) -> LearnResult | DivergedError:
        try:
            result: LearnResult | DivergedError = self.learner.learn(entry.x, entry.y)
        except DivergedError as error:
            # The learner guarantees that nothing changed, so a replay comes out the same.
            result = error
        except BaseException as error:
            self._broken = (
                f"learning event {entry.sequence} failed with {type(error).__name__}: {error}; "
                "the event is in the journal, so correct the network or loss and start again"
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
    """An exclusive lock that ends with the process, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LearnerError(
            f"{path.parent} is in use by another process; two learners on one journal would "
            "overwrite each other: end that one, or choose another directory"
        ) from None
    return descriptor
