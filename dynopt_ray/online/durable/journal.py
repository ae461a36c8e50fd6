"""The journal: an append-only file of events, written before they are acknowledged.

A learner whose process has died is rebuilt from its last snapshot and the events after it. The
journal holds these events. Three rules ensure that no acknowledged event is lost in a crash:

- `append` writes one record and syncs it. Its events are acknowledged only after the sync.
- The next record is written only after the sync of the one before. So a crash can tear only the
  last record, whose events were not acknowledged. A torn record is short: the file ends before the
  record does, or, after a power failure, holds nothing but zeros there. On opening it is dropped.
  A record that is complete but has a wrong checksum was damaged later. Its events may have been
  acknowledged, so the file is refused, wherever the record is.
- Once a snapshot covers all entries, `restart` replaces the file with an empty one by a single
  rename. No event is appended until the rename is on disk. Otherwise a power failure could bring
  back the old file, without the events that were appended to the new one.

Layout, all little-endian:

    file   = header record*
    header = magic (8) | id of the learner (16) | base sequence (u64) | CRC-32 of the three (u32)
    record = marker (4) | body length (u32) | first sequence (u64) | events (u32)
             | CRC-32 of the body (u32) | CRC-32 of the 24 bytes before (u32) | body
    body   = events; see `records`
"""

import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from uuid import UUID, uuid4

from dynopt_ray.errors import CheckpointError, LearnerError
from dynopt_ray.online.durable.records import MAX_BODY_BYTES, Entry, decode, encode
from dynopt_ray.storage import replace_file, sync_directory

_MAGIC = b"DYNOPTJ2"
_HEADER = struct.Struct("<8s16sQI")
_MARKER = b"\xd5REC"
_RECORD = struct.Struct("<4sIQIII")
_MAX_SEQUENCE = 2**63 - 1


class Journal:
    """An append-only file of the events since the last snapshot.

    Args:
        path: the file; it is created if it is missing. A torn last record is dropped on opening.
        learner: id of the learner that the journal must belong to. None accepts a journal of any
            learner, and draws an id for a new one.

    Attributes:
        learner: id of the learner that the journal belongs to.
        base: the sequence number before that of the first entry.
        last: the sequence number of the last entry, or `base` if there is none.

    Raises:
        CheckpointError: the file is not a journal, is damaged, or belongs to another learner.
    """

    def __init__(self, path: str | os.PathLike[str], *, learner: UUID | None = None) -> None:
        self._path = Path(path)
        self._broken: str | None = None
        self.base = self.last = self._end = 0
        try:
            if not self._path.exists():
                write_empty(self._path, learner or uuid4(), base=0)
            self._file = self._reopened()
        except OSError as error:
            raise CheckpointError(f"cannot open journal {path}: {error.strerror}") from error
        self._is_settled = True
        try:
            self.learner = self._read()
            if learner not in (None, self.learner):
                raise CheckpointError(
                    f"journal {self._path} belongs to another learner: its id is {self.learner}, "
                    f"not {learner}. Restore the journal of this learner"
                )
            self._drop_torn()
        except BaseException:
            self._file.close()
            raise

    @property
    def num_bytes(self) -> int:
        """The size of the file."""
        return self._end

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries and wait until the disk has them.

        Raises:
            LearnerError: the entries are out of sequence or too large, they could not be written,
                or the journal is closed. The journal is unchanged, and the entries must not be
                acknowledged.
            DataError: an entry holds data that the journal cannot keep.
            CheckpointError: the file was damaged while a restart was not finished.
        """
        if not entries:
            return
        self._refuse_if_broken()
        sequences = [entry.sequence for entry in entries]
        try:
            self._settle()
        except OSError as error:
            raise self._not_accepted(sequences, error) from error
        if sequences != list(range(self.last + 1, self.last + 1 + len(entries))):
            raise LearnerError(
                f"the next sequence of the journal is {self.last + 1}; got {_range(sequences)}"
            )
        body = b"".join(map(encode, entries))
        if len(body) > MAX_BODY_BYTES:
            raise LearnerError(f"{len(entries)} events take {len(body)} bytes; send fewer at once")
        try:
            self._file.seek(self._end)
            rest = memoryview(_record_header(sequences[0], len(entries), body) + body)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fdatasync(self._file.fileno())
        except BaseException as error:
            # Half a record must not stay, whatever the reason: a shorter one that is written over
            # it would be followed by its rest, and opening would find the file damaged.
            self._take_back()
            if isinstance(error, OSError):
                raise self._not_accepted(sequences, error) from error
            raise
        self._end += _RECORD.size + len(body)
        self.last = sequences[-1]

    def entries(self, *, after: int = 0) -> Iterator[Entry]:
        """Yield the entries with sequence numbers above `after`, in order."""
        position = _HEADER.size
        while position < self._end:
            first, count, body, position = self._record_at(position)
            if first + count - 1 > after:
                yield from (e for e in decode(first, count, body) if e.sequence > after)

    def restart(self, sequence: int) -> None:
        """Discard all entries, because a snapshot on disk now covers them.

        Args:
            sequence: sequence number of the last event that the snapshot covers; the next entry
                follows it.

        Raises:
            LearnerError: `sequence` is below that of the last entry, so entries would be lost, or
                the journal is closed.
            CheckpointError: the new file could not be written. No entry is lost, and appending
                is possible again as soon as the disk allows it.
        """
        self._refuse_if_broken()
        if sequence < self.last:
            raise LearnerError(f"restarting at {sequence} would lose entries up to {self.last}")
        # If this is interrupted, the path may already lead to the new file, and records appended
        # to the old one would be lost. So the next append first reopens the file.
        self._is_settled = False
        try:
            write_empty(self._path, self.learner, base=sequence)
            self._settle()
        except OSError as error:
            raise CheckpointError(
                f"cannot empty journal {self._path}: {error.strerror}; no event is lost"
            ) from error

    def close(self) -> None:
        """Close the file. All appended entries are on disk already."""
        self._file.close()
        self._broken = "it was closed"

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise LearnerError(f"cannot use journal {self._path}: {self._broken}; open it again")

    def _settle(self) -> None:
        """After a restart, sync the directory and reopen the file that the path leads to."""
        if self._is_settled:
            return
        sync_directory(self._path.parent)
        old, self._file = self._file, self._reopened()
        old.close()
        self._read()
        self._drop_torn()
        self._is_settled = True

    def _reopened(self) -> FileIO:
        # Unbuffered: after a failed write, no bytes may remain that a later write would flush.
        return FileIO(self._path, "r+")

    def _not_accepted(self, sequences: Sequence[int], error: OSError) -> LearnerError:
        return LearnerError(
            f"cannot write journal {self._path}: {error.strerror}; events "
            f"{_range(sequences)} were not accepted; send them again once there is room"
        )

    def _read(self) -> UUID:
        """Verify the header and every record up to a torn one, and return the learner's id.

        This changes nothing in the file.
        """
        self._end = _HEADER.size
        self._file.seek(0)
        head = self._file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[:8] != _MAGIC:
            raise CheckpointError(f"{self._path} is not a journal of this version")
        _, learner, base, checksum = _HEADER.unpack(head)
        if checksum != zlib.crc32(head[:-4]) or base > _MAX_SEQUENCE:
            raise CheckpointError(f"journal {self._path} is damaged in its header")
        self.base = self.last = base
        size = self._size()
        while self._end < size:
            try:
                first, count, body, end = self._record_at(self._end)
            except CheckpointError:
                self._refuse_unless_torn()
                break
            if first != self.last + 1 or first + count > _MAX_SEQUENCE:
                raise CheckpointError(
                    f"journal {self._path} jumps from sequence {self.last} to {first}"
                )
            try:
                deque(decode(first, count, body), maxlen=0)
            except CheckpointError as error:
                raise CheckpointError(f"journal {self._path} is damaged: {error}") from error
            self.last, self._end = first + count - 1, end
        return UUID(bytes=learner)

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _record_at(self, position: int) -> tuple[int, int, bytes, int]:
        """Return (first sequence, count, body, end) of the record at a position of the file."""
        self._file.seek(position)
        head = self._file.read(_RECORD.size)
        if len(head) == _RECORD.size:
            _, length, first, count, body_sum, _ = _RECORD.unpack(head)
            is_whole = position + _RECORD.size + length <= self._size()
            if _is_header(head) and is_whole:
                body = self._file.read(length)
                if len(body) == length and zlib.crc32(body) == body_sum:
                    return first, count, body, position + _RECORD.size + length
        raise CheckpointError(f"journal {self._path} is damaged at byte {position}")

    def _drop_torn(self) -> None:
        """Cut off the torn record at the end of the file, if there is one."""
        if self._end < self._size():
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())

    def _refuse_unless_torn(self) -> None:
        """Raise an error unless what follows the last good record was torn by a crash."""
        size = self._size()
        self._file.seek(self._end)
        rest = self._file.read()
        if _is_torn(rest):
            return
        if (first := _later_record(rest)) is not None:
            raise CheckpointError(
                f"journal {self._path} is damaged after sequence {self.last}, at byte "
                f"{self._end} of {size}: events up to {first - 1} are lost, but later ones exist"
            )
        raise CheckpointError(
            f"journal {self._path} is damaged after sequence {self.last}: the record at byte "
            f"{self._end} of {size} is complete but its checksum is wrong, so it was not torn by a "
            "crash, and its events may have been acknowledged. Restore the file from a copy. Only "
            "if no event of the record was acknowledged, cut the file off at that byte"
        )

    def _take_back(self) -> None:
        try:
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())
        except OSError as error:
            self._broken = f"a failed write could not be undone ({error.strerror})"


def write_empty(path: Path, learner: UUID, *, base: int) -> None:
    """Replace a journal by an empty one, whose first entry follows the sequence number `base`.

    Raises:
        OSError: the file could not be written; the journal is unchanged.
    """
    head = struct.pack("<8s16sQ", _MAGIC, learner.bytes, base)
    head += struct.pack("<I", zlib.crc32(head))

    def write(temporary: Path) -> None:
        temporary.write_bytes(head)

    replace_file(path, write)


def _is_torn(rest: bytes) -> bool:
    """Whether the bytes behind the last good record are the beginning of one, or only zeros."""
    if len(rest) < _RECORD.size or not any(rest):
        return True
    _, length, *_ = _RECORD.unpack_from(rest)
    return _is_header(rest[: _RECORD.size]) and len(rest) < _RECORD.size + length


def _is_header(head: bytes) -> bool:
    *_, head_sum = _RECORD.unpack(head)
    return head.startswith(_MARKER) and bool(head_sum == zlib.crc32(head[:-4]))


def _later_record(rest: bytes) -> int | None:
    """Return the first sequence number of a record behind a damaged one, or None.

    Only its header is verified. To read the body behind every marker could take forever.
    """
    place = rest.find(_MARKER, 1)
    while 0 <= place <= len(rest) - _RECORD.size:
        head = rest[place : place + _RECORD.size]
        if _is_header(head):
            return int(_RECORD.unpack(head)[2])
        place = rest.find(_MARKER, place + 1)
    return None


def _record_header(first: int, count: int, body: bytes) -> bytes:
    head = struct.pack("<4sIQII", _MARKER, len(body), first, count, zlib.crc32(body))
    return head + struct.pack("<I", zlib.crc32(head))


def _range(sequences: Sequence[int]) -> str:
    return f"{sequences[0]} to {sequences[-1]}" if len(sequences) > 1 else str(sequences[0])
