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
    header = magic (8) | base sequence (u64) | CRC-32 of both (u32)
    record = marker (4) | body length (u32) | first sequence (u64) | events (u32)
             | CRC-32 of the body (u32) | CRC-32 of the 24 bytes before (u32) | body
    body   = (x y)*, each an array: type (u8) | dimensions (u8) | sizes (u32 each) | bytes
"""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynopt_ray.errors import CheckpointError, DataError, LearnerError
from dynopt_ray.storage import replace_file, sync_directory

_MAGIC = b"DYNOPTJ1"
_HEADER = struct.Struct("<8sQI")
_MARKER = b"\xd5REC"
_RECORD = struct.Struct("<4sIQIII")
_TYPES = ("?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "u2", "u4")
_CODES = {np.dtype(name): code for code, name in enumerate(_TYPES)}
_ADVICE = f"convert it to one of the NumPy types {', '.join(_TYPES)}"
_MAX_BODY_BYTES = 2**32 - 1


@dataclass(frozen=True)
class Entry:
    """The event or mini-batch of one call of `learn`, as the journal stores it.

    Attributes:
        sequence: number of the call in the stream, from 1.
        x: the event or mini-batch.
        y: its target or targets.
    """

    sequence: int
    x: NDArray[Any]
    y: NDArray[Any]


class Journal:
    """An append-only file of the events since the last snapshot.

    Args:
        path: the file; it is created if it is missing. A torn last record is dropped on opening.

    Attributes:
        base: the sequence number before that of the first entry.
        last: the sequence number of the last entry, or `base` if there is none.

    Raises:
        CheckpointError: the file is not a journal, or it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._broken: str | None = None
        self.base = self.last = self._end = 0
        if not self._path.exists():
            self._write_empty(0)
        self._file = self._reopened()
        self._is_settled = True
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries and wait until the disk has them.

        Raises:
            LearnerError: the entries are out of sequence or too large, they could not be written,
                or the journal is closed. The journal is unchanged, and the entries must not be
                acknowledged.
            DataError: an entry holds data of a type that the journal cannot keep.
        """
        if not entries:
            return
        self._refuse_if_broken()
        sequences = [entry.sequence for entry in entries]
        if sequences != list(range(self.last + 1, self.last + 1 + len(entries))):
            raise LearnerError(
                f"the next sequence of the journal is {self.last + 1}; got {_range(sequences)}"
            )
        body = b"".join(_encode(entry.x) + _encode(entry.y) for entry in entries)
        if len(body) > _MAX_BODY_BYTES:
            raise LearnerError(f"{len(entries)} events take {len(body)} bytes; send fewer at once")
        try:
            self._settle()
            self._file.seek(self._end)
            rest = memoryview(_record_header(sequences[0], len(entries), body) + body)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fdatasync(self._file.fileno())
        except OSError as error:
            if self._is_settled:
                self._take_back(error)
            raise LearnerError(
                f"cannot write journal {self._path}: {error.strerror}; events "
                f"{_range(sequences)} were not accepted; send them again once there is room"
            ) from error
        self._end += _RECORD.size + len(body)
        self.last = sequences[-1]

    def entries(self, *, after: int = 0) -> Iterator[Entry]:
        """Yield the entries with sequence numbers above `after`, in order."""
        position = _HEADER.size
        while position < self._end:
            first, count, body, position = self._record_at(position)
            if first + count - 1 > after:
                yield from (e for e in _decode(first, count, body) if e.sequence > after)

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
            self._write_empty(sequence)
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
        self._file.close()
        self._file = self._reopened()
        self._read()
        self._is_settled = True

    def _reopened(self) -> FileIO:
        # Unbuffered: after a failed write, no bytes may remain that a later write would flush.
        return FileIO(self._path, "r+")

    def _write_empty(self, base: int) -> None:
        head = struct.pack("<8sQ", _MAGIC, base)
        head += struct.pack("<I", zlib.crc32(head))

        def write(temporary: Path) -> None:
            temporary.write_bytes(head)

        replace_file(self._path, write)

    def _read(self) -> None:
        """Read the header, verify every record and cut off a torn last record."""
        self._end = _HEADER.size
        head = self._file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[:8] != _MAGIC:
            raise CheckpointError(f"{self._path} is not a journal of this version")
        _, base, checksum = _HEADER.unpack(head)
        if checksum != zlib.crc32(head[:16]):
            raise CheckpointError(f"journal {self._path} is damaged in its header")
        self.base = self.last = base
        size = os.fstat(self._file.fileno()).st_size
        while self._end < size:
            try:
                first, count, _, end = self._record_at(self._end)
            except CheckpointError:
                self._drop_torn(size)
                return
            if first != self.last + 1:
                raise CheckpointError(
                    f"journal {self._path} jumps from sequence {self.last} to {first}"
                )
            self.last, self._end = first + count - 1, end

    def _record_at(self, position: int) -> tuple[int, int, bytes, int]:
        """Return (first sequence, count, body, end) of the record at a position of the file."""
        self._file.seek(position)
        head = self._file.read(_RECORD.size)
        if len(head) == _RECORD.size:
            marker, length, first, count, body_sum, head_sum = _RECORD.unpack(head)
            if marker == _MARKER and head_sum == zlib.crc32(head[:-4]):
                body = self._file.read(length)
                if len(body) == length and zlib.crc32(body) == body_sum:
                    return first, count, body, position + _RECORD.size + length
        raise CheckpointError(f"journal {self._path} is damaged at byte {position}")

    def _drop_torn(self, size: int) -> None:
        """Cut off a torn record at the end of the file; refuse the file if it is damaged."""
        self._file.seek(self._end)
        rest = self._file.read()
        if _is_torn(rest):
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())
            return
        place = rest.find(_MARKER, 1)
        while place >= 0:
            try:
                first, *_ = self._record_at(self._end + place)
            except CheckpointError:
                place = rest.find(_MARKER, place + 1)
                continue
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

    def _take_back(self, error: OSError) -> None:
        try:
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())
        except OSError:
            self._broken = f"a failed write could not be undone ({error.strerror})"


def _is_torn(rest: bytes) -> bool:
    """Whether the bytes behind the last good record are the beginning of one, or only zeros."""
    if len(rest) < _RECORD.size or not any(rest):
        return True
    marker, length, _, _, _, head_sum = _RECORD.unpack_from(rest)
    is_header: bool = marker == _MARKER and head_sum == zlib.crc32(rest[: _RECORD.size - 4])
    return is_header and len(rest) < _RECORD.size + length


def storable(name: str, value: Any) -> NDArray[Any]:
    """Return a copy of a value as the array that the journal would give back.

    The copy has native byte order and row-major layout. A learner that learns an event now and
    one that replays it later then compute with the same bytes in the same layout. Otherwise they
    might round differently.

    Args:
        name: name of the value in error messages.
        value: a number, list, array or tensor. bfloat16 becomes float32, which holds the same
            numbers.

    Raises:
        DataError: the value is not an array of numbers, or its type cannot be kept in a journal.
    """
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        array = np.array(value, order="C")
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name} is not an array of numbers: {error}") from None
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype not in _CODES:
        raise DataError(f"{name} is an array of {array.dtype}; {_ADVICE}")
    return array


def _record_header(first: int, count: int, body: bytes) -> bytes:
    head = struct.pack("<4sIQII", _MARKER, len(body), first, count, zlib.crc32(body))
    return head + struct.pack("<I", zlib.crc32(head))


def _encode(array: NDArray[Any]) -> bytes:
    code = _CODES.get(array.dtype)
    if code is None:
        raise DataError(f"the journal cannot keep {array.dtype} data; {_ADVICE}")
    shape = struct.pack(f"<BB{array.ndim}I", code, array.ndim, *array.shape)
    return shape + np.ascontiguousarray(array).tobytes()


def _decode(first: int, count: int, body: bytes) -> Iterator[Entry]:
    position = 0
    for sequence in range(first, first + count):
        x, position = _decode_array(body, position)
        y, position = _decode_array(body, position)
        yield Entry(sequence, x, y)


def _decode_array(body: bytes, position: int) -> tuple[NDArray[Any], int]:
    code, ndim = struct.unpack_from("<BB", body, position)
    shape = struct.unpack_from(f"<{ndim}I", body, position + 2)
    dtype = np.dtype(_TYPES[code])
    position += 2 + 4 * ndim
    size = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(body, dtype, size, position).reshape(shape).copy()
    return array, position + size * dtype.itemsize


def _range(sequences: Sequence[int]) -> str:
    return f"{sequences[0]} to {sequences[-1]}" if len(sequences) > 1 else str(sequences[0])
