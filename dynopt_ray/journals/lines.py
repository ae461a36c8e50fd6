"""Where a journal's lines are stored: in a file on a disk, or in numbered segments under a URI."""

import contextlib
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from dynopt_ray.errors import CheckpointError, RunError
from dynopt_ray.journals.stores import UriStore
from dynopt_ray.storage import sync_directory

_HEARTBEAT_S = 10.0
_STALE_S = 60.0
_LOCK = "journal/lock.json"


class JournalLines(Protocol):
    """Bytes that only grow."""

    @property
    def name(self) -> str:
        """What messages call the place."""

    def lock(self) -> None:
        """Keep other processes from opening the place for writing, until `close`.

        Raises:
            RunError: another process has it open.
        """

    def read(self) -> bytes:
        """Return everything that is stored."""

    def cut(self, size: int) -> None:
        """Drop what lies beyond the first `size` bytes: the rest of a torn write."""

    def append(self, line: bytes) -> None:
        """Write a line.

        Raises:
            RunError: it could not be written; nothing of it is stored.
        """

    def sync(self) -> None:
        """Make all lines survive a power failure.

        Raises:
            RunError: that failed.
        """

    def close(self) -> None:
        """Release the lock."""


def lines_at(directory: str) -> JournalLines:
    """Return the lines of the run in a directory or under a URI such as s3://bucket/run."""
    if "://" in directory:
        return SegmentLines(UriStore(directory))
    return LocalLines(Path(directory) / "journal.jsonl")


class LocalLines:
    """JournalLines in a file, locked with `flock`.

    Args:
        path: the file; it is created when it is locked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._size = 0

    @property
    def name(self) -> str:
        """The path of the file."""
        return str(self._path)

    def lock(self) -> None:
        """Open the file and lock it; the kernel releases the lock of a process that dies."""
        is_new = not self._path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._path, flags, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_new:
                sync_directory(self._path.parent)
        except BlockingIOError as error:
            self.close()
            raise RunError(
                f"another process is writing to {self._path}; wait for it, or end it first"
            ) from error
        except OSError as error:
            self.close()
            raise RunError(f"cannot open {self._path}: {error.strerror or error}") from error
        self._size = os.fstat(self._descriptor).st_size

    def read(self) -> bytes:
        """Return the content of the file; nothing if there is no file."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RunError(f"cannot read {self._path}: {error.strerror or error}") from error

    def cut(self, size: int) -> None:
        """Truncate the file."""
        os.ftruncate(self._open(), size)
        os.fsync(self._open())
        self._size = size

    def append(self, line: bytes) -> None:
        """Write a line at the end of the file."""
        written = 0
        try:
            while written < len(line):
                written += os.pwrite(self._open(), line[written:], self._size + written)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._open(), self._size)
            raise RunError(
                f"cannot write to {self._path}: {error.strerror or error}; what was written before "
                "is safe"
            ) from error
        self._size += len(line)

    def sync(self) -> None:
        """Sync the file to its disk."""
        try:
            os.fdatasync(self._open())
        except OSError as error:
            raise RunError(f"cannot sync {self._path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file, which releases the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        assert self._descriptor is not None, "lock() comes first"
        return self._descriptor


class SegmentLines:
    """JournalLines in immutable files under a URI, for stores that cannot append.

    Each sync stores the lines since the last one as a new segment, whose name is the number of
    bytes before it. The lock is a file with a heartbeat; a driver whose heartbeat is older than a
    minute counts as dead, as does one whose process on this machine is gone. Object stores offer
    nothing stronger, so two drivers that start in the same second are told apart only by the one
    that reads the lock last.

    Args:
        store: where the segments are.
    """

    def __init__(self, store: UriStore) -> None:
        self._store = store
        self._pending: list[bytes] = []
        self._size = 0
        self._owner: str | None = None
        self._beaten_at = 0.0

    @property
    def name(self) -> str:
        """The URI of the segments."""
        return f"{self._store.name}/journal"

    def lock(self) -> None:
        """Write the lock, unless that of a living driver is there."""
        held = self._lock_content()
        if held is not None and not _is_dead(held):
            raise RunError(
                f"{held['host']} (process {held['pid']}) is writing to {self._store.name}; wait "
                f"for it, or end it and try again after {_STALE_S:.0f} s"
            )
        self._owner = uuid.uuid4().hex
        self._beat()

    def read(self) -> bytes:
        """Return the content of all segments in order."""
        with _of_run():
            content = b"".join(map(self._store.get, self._segments()))
        self._size = len(content)
        return content

    def cut(self, size: int) -> None:
        """Refuse: segments are stored whole or not at all, so none can be torn."""
        raise RunError(
            f"the journal {self.name} is damaged: it ends within a line, {size} bytes from its "
            "start; restore its last segment from a copy"
        )

    def append(self, line: bytes) -> None:
        """Keep a line for the next segment."""
        self._pending.append(line)

    def sync(self) -> None:
        """Store the lines since the last sync as a segment, and renew the heartbeat."""
        content = b"".join(self._pending)
        if content:
            self._put(f"journal/{self._size:012d}.jsonl", content)
            self._size += len(content)
            self._pending = []
        if self._owner is not None and time.time() - self._beaten_at > _HEARTBEAT_S:
            held = self._lock_content()
            if held is None or held["owner"] != self._owner:
                raise RunError(f"another driver has taken over {self._store.name}; this one ends")
            self._beat()

    def close(self) -> None:
        """Remove the lock."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        # If the store cannot be reached now, an error of the last sync says so, and the lock will
        # count as a dead driver's after a minute.
        with contextlib.suppress(RunError):
            held = self._lock_content()
            if held is not None and held["owner"] == owner:
                with _of_run():
                    self._store.delete(_LOCK)

    def _lock_content(self) -> dict[str, Any] | None:
        with _of_run():
            if _LOCK not in self._store.names("journal"):
                return None
            held: dict[str, Any] = json.loads(self._store.get(_LOCK))
        return held

    def _beat(self) -> None:
        self._beaten_at = time.time()
        held = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "beat": self._beaten_at,
        }
        self._put(_LOCK, json.dumps(held).encode())

    def _segments(self) -> list[str]:
        return sorted(name for name in self._store.names("journal") if name.endswith(".jsonl"))

    def _put(self, name: str, content: bytes) -> None:
        with _of_run():
            self._store.put(name, content)


def _is_dead(held: dict[str, Any]) -> bool:
    """Whether the driver that wrote a lock is gone: by its heartbeat, or as a process from here."""
    if time.time() - held["beat"] >= _STALE_S:
        return True
    if held["host"] != socket.gethostname():
        return False
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process
        return False
    return False


@contextmanager
def _of_run() -> Iterator[None]:
    """Raise the errors of a store as those of a run."""
    try:
        yield
    except CheckpointError as error:
        raise RunError(str(error)) from error
