"""The directory of a durable learner: its lock, its id, its journal and its snapshot.

The id is drawn when the directory is used for the first time. Journal, snapshot and `lock` repeat
it. The lock file gets it only when the journal exists, so a lock file with an id, or a snapshot,
says that there must be a journal.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any
from uuid import UUID

from dynopt_ray.errors import CheckpointError, LearnerError
from dynopt_ray.online.durable.journal import Journal, write_empty
from dynopt_ray.storage import read_state, remove_temporaries, write_state

_KIND = "durable learner"
_MAX_SEQUENCE = 2**62


class LearnerDirectory:
    """A locked directory of a learner; it is created if it is missing.

    Args:
        path: the directory.

    Attributes:
        path: the directory.

    Raises:
        LearnerError: another process has the directory open, or it cannot be made.
        CheckpointError: its files are damaged, or belong to different learners.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._snapshot, self._journal = path / "snapshot.safetensors", path / "journal"
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path / "lock")
        except OSError as error:
            raise LearnerError(
                f"cannot use {path} as the directory of a learner: {error.strerror}"
            ) from error
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(os.close, self._lock)
            for file in (self._snapshot, self._journal):
                remove_temporaries(file)  # the lock excludes other writers
            self._learner = self._noted_id()
            on_failure.pop_all()

    def __enter__(self) -> "LearnerDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        os.close(self._lock)

    def journal(self) -> Journal:
        """Open the journal; a new directory gets a new one.

        Raises:
            CheckpointError: the journal is missing, damaged, or belongs to another learner.
        """
        if not self._journal.exists() and (self._learner or self._snapshot.exists()):
            raise CheckpointError(
                f"the journal {self._journal} is missing, and its events with it. Restore it from "
                "a copy; if it is lost, see drop_journal. To start anew, choose another directory"
            )
        journal = Journal(self._journal, learner=self._learner)
        if self._learner is None:
            self._note_id(journal.learner)
        return journal

    def read_snapshot(self) -> tuple[int, dict[str, Any]] | None:
        """Return the last event that the snapshot covers, and the learner's state; or None.

        Raises:
            CheckpointError: the snapshot is damaged, or belongs to another learner.
        """
        if not self._snapshot.exists():
            return None
        saved = read_state(self._snapshot, kind=_KIND)
        found, sequence, state = (saved.get(key) for key in ("id", "sequence", "learner"))
        if type(sequence) is not int or not 0 <= sequence <= _MAX_SEQUENCE:
            raise CheckpointError(f"{self._snapshot} has been altered: it ends at {sequence!r:.60}")
        if not isinstance(state, dict) or len(saved) != 3:
            raise CheckpointError(f"{self._snapshot} does not hold the state of a learner")
        learner = self._as_id(found, self._snapshot)
        if self._learner not in (None, learner):
            raise CheckpointError(
                f"{self._snapshot} belongs to another learner: its id is {learner}, not "
                f"{self._learner}. Restore the snapshot of this learner"
            )
        self._learner = learner
        return sequence, state

    def write_snapshot(self, sequence: int, state: dict[str, Any]) -> None:
        """Replace the snapshot.

        Args:
            sequence: the last event that it covers.
            state: the state of the learner.

        Raises:
            CheckpointError: it could not be written; the previous one is still valid.
        """
        saved = {"id": str(self._learner), "sequence": sequence, "learner": state}
        write_state(self._snapshot, saved, kind=_KIND)

    def empty_journal(self) -> int:
        """Replace the journal by an empty one that follows the snapshot; see `drop_journal`."""
        snapshot = self.read_snapshot()
        if snapshot is None:
            raise CheckpointError(f"{self.path} has no snapshot to continue from")
        sequence, _ = snapshot
        assert self._learner is not None, "reading the snapshot has set it"
        try:
            write_empty(self._journal, self._learner, base=sequence)
        except OSError as error:
            raise CheckpointError(f"cannot write {self._journal}: {error.strerror}") from error
        self._note_id(self._learner)
        return sequence

    def _noted_id(self) -> UUID | None:
        """Return the id in the lock file, or None if the directory is new."""
        text = os.pread(self._lock, 100, 0).decode(errors="replace")
        return self._as_id(text, self.path / "lock") if text else None

    def _as_id(self, text: Any, file: Path) -> UUID:
        try:
            return UUID(text)
        except (ValueError, TypeError, AttributeError):
            raise CheckpointError(
                f"{file} is damaged: it does not hold the id of a learner"
            ) from None

    def _note_id(self, learner: UUID) -> None:
        self._learner = learner
        try:
            os.pwrite(self._lock, str(learner).encode(), 0)
            os.fsync(self._lock)
        except OSError as error:
            raise LearnerError(
                f"cannot write {self.path / 'lock'}: {error.strerror}; no event was learned"
            ) from error


def drop_journal(directory: str | os.PathLike[str]) -> int:
    """Give up a learner's journal, which is lost or damaged, and continue from its snapshot.

    All events after the snapshot are lost, also those that were acknowledged. So restore the
    journal from a copy if there is one.

    Args:
        directory: the directory of a `DurableLearner` that is not in use.

    Returns:
        The sequence number of the last event that the snapshot covers; the next event follows it.

    Raises:
        CheckpointError: there is no snapshot, or it is damaged, or the files cannot be written.
        LearnerError: another process has the directory open.
    """
    with LearnerDirectory(Path(directory)) as opened:
        return opened.empty_journal()


def _locked(path: Path) -> int:
    """Return the descriptor of an exclusive lock, which is released however the process ends."""
    # The id will be written to the file, so it must not be a link to somebody's file.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
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
