r"""The journal of a run: everything that a run has found, so that nothing of it can be lost.

A journal is a text file with one record a line. A record is written at once and synced in groups;
it counts as acknowledged once it is synced. Tables, plots and reports are derived from the journal,
and a run that was interrupted continues from it.

What a crash can do is told apart from damage:

- A crash can cut the last line short, at any byte. Such a line was never acknowledged. It is
  dropped when the journal is opened for writing, and ignored when it is read.
- A line that is complete but has a wrong checksum, a wrong number or no end was changed after it
  had been written. The journal is then refused, because an acknowledged record would be missing.

So each line states its own length in a part of fixed size with a checksum of its own:

    {"n":"00000012","size":"00000123","head":"1f2e3d4c","sum":"5a6b7c8d","record":{…}}\n

`n` counts the lines from 0, `size` is the length of the record's JSON in bytes, `head` is the
CRC-32 of both numbers, and `sum` is the CRC-32 of the record's bytes. The line is valid JSON.
"""

import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from dynopt_ray.errors import RunError
from dynopt_ray.journals.lines import JournalLines

_HEAD = '{{"n":"{n:08d}","size":"{size:08d}","head":"{head:08x}","sum":"{sum:08x}","record":'
_HEAD_SIZE = len(_HEAD.format(n=0, size=0, head=0, sum=0))
_END = b"}\n"
_LARGEST_RECORD = 99_999_999


@dataclass(frozen=True)
class RunRecord:
    """One record.

    Attributes:
        kind: what happened.
        fields: the facts, JSON-able.
    """

    kind: str
    fields: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


class RunJournal:
    """A journal that is open for writing. Only one process can have it open.

    Args:
        lines: where the lines are stored.
        sync_every_s: records are synced at the latest when the next record is appended this many
            seconds after the last sync, or by `sync`.

    Attributes:
        records: the records that the journal held when it was opened.

    Raises:
        RunError: the journal is damaged, or another process has it open.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from dynopt_ray.journals import LocalLines
        >>> path = Path(tempfile.mkdtemp()) / "journal.jsonl"
        >>> with RunJournal(LocalLines(path)) as journal:
        ...     journal.append("measured", trial=3, accuracy=0.9)
        >>> with RunJournal(LocalLines(path)) as journal:
        ...     journal.records[0]["accuracy"]
        0.9
    """

    def __init__(self, lines: JournalLines, *, sync_every_s: float = 0.2) -> None:
        self._lines = lines
        self._sync_every_s = sync_every_s
        lines.lock()
        try:
            content = lines.read()
            self.records, end = _parsed(content, lines.name)
            if end < len(content):
                lines.cut(end)
        except BaseException:
            lines.close()
            raise
        self._num_records = len(self.records)
        self._synced_at = time.monotonic()
        self._is_synced = True

    def append(self, kind: str, /, **fields: Any) -> None:
        """Add a record. It is acknowledged after the next sync.

        Raises:
            RunError: a field is not JSON-able, or the record could not be written, for example
                because the disk is full. The journal is as it was before.
        """
        self._lines.append(_line(self._num_records, {"kind": kind, **fields}))
        self._num_records += 1
        self._is_synced = False
        if time.monotonic() - self._synced_at >= self._sync_every_s:
            self.sync()

    def sync(self) -> None:
        """Acknowledge all records: from here on they survive a power failure.

        Raises:
            RunError: they could not be stored.
        """
        if not self._is_synced:
            self._lines.sync()
            self._is_synced = True
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync, and let other processes open the journal."""
        try:
            self.sync()
        finally:
            self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_journal(lines: JournalLines) -> tuple[RunRecord, ...]:
    """Read the records of a journal, also while another process writes to it.

    Raises:
        RunError: the journal is damaged.
    """
    records, _ = _parsed(lines.read(), lines.name)
    return records


def _line(number: int, record: dict[str, Any]) -> bytes:
    try:
        body = json.dumps(record, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise RunError(
            f"the record {record.get('kind')!r} cannot be written to the journal: {error}; give "
            "finite numbers, texts, lists and dicts"
        ) from error
    if len(body) > _LARGEST_RECORD:
        raise RunError(f"the record {record.get('kind')!r} has {len(body)} bytes; that is too much")
    return _head(number, body).encode() + body + _END


def _head(number: int, body: bytes) -> str:
    return _HEAD.format(
        n=number, size=len(body), head=_head_sum(number, len(body)), sum=zlib.crc32(body)
    )


def _head_sum(number: int, size: int) -> int:
    return zlib.crc32(f"{number:08d} {size:08d}".encode())


def _parsed(content: bytes, name: str) -> tuple[tuple[RunRecord, ...], int]:
    """Return the records, and where the last complete line ends."""
    records: list[RunRecord] = []
    end = 0
    for line in _lines_of(content, name):
        fields = json.loads(line[_HEAD_SIZE : -len(_END)])
        records.append(RunRecord(fields.pop("kind"), fields))
        end += len(line)
    return tuple(records), end


def _lines_of(content: bytes, name: str) -> Iterator[bytes]:
    """Yield the complete lines; a torn last line is left out."""
    place = number = 0
    while len(content) - place >= _HEAD_SIZE:
        size = _size(content[place : place + _HEAD_SIZE], number)
        if size is None:
            # A block that was allocated but never written reads as zeros after a power failure.
            if not content[place:].strip(b"\0"):
                return
            raise _damage(name, number, "its beginning was changed")
        line = content[place : place + _HEAD_SIZE + size + len(_END)]
        if len(line) < _HEAD_SIZE + size + len(_END):
            return
        body = line[_HEAD_SIZE : -len(_END)]
        if line[:_HEAD_SIZE] != _head(number, body).encode() or not line.endswith(_END):
            raise _damage(name, number, "its checksum does not match")
        yield line
        place += len(line)
        number += 1


def _size(head: bytes, number: int) -> int | None:
    """Return the length of a record that its line states, or None if the line was changed."""
    try:
        size = int(head[len('{"n":"00000000","size":"') :][:8])
        stated = int(head[len('{"n":"00000000","size":"00000000","head":"') :][:8], 16)
    except ValueError:
        return None
    return size if stated == _head_sum(number, size) else None


def _damage(name: str, number: int, what: str) -> RunError:
    return RunError(
        f"the journal {name} is damaged in line {number + 1}: {what}, so a record that was "
        "acknowledged is lost or wrong. Restore the file from a copy. To continue without that "
        f"line and all after it, keep only the first {number} lines"
    )
