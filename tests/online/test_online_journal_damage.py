"""Journals that were damaged, or made to harm: refused with a reason, never shorter in silence."""

import random
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest

from dynopt_ray.errors import CheckpointError, DataError, LearnerError
from dynopt_ray.online import Entry, Journal, storable

HEADER_BYTES = 36
RECORD_HEADER_BYTES = 28


def entries(first: int, count: int) -> list[Entry]:
    x = np.random.default_rng(first).normal(size=(count, 2)).astype(np.float32)
    return [Entry(first + i, row, np.asarray(i % 3)) for i, row in enumerate(x)]


def filled(path: Path, *batches: int) -> list[int]:
    """Write a journal with records of so many entries; return the file's size after each."""
    with Journal(path) as journal:
        sizes = [path.stat().st_size]
        for count in batches:
            journal.append(entries(journal.last + 1, count))
            sizes.append(path.stat().st_size)
    return sizes


def header(base: int, learner: UUID) -> bytes:
    head = struct.pack("<8s16sQ", b"DYNOPTJ2", learner.bytes, base)
    return head + struct.pack("<I", zlib.crc32(head))


def record(first: int, count: int, body: bytes, *, length: int | None = None) -> bytes:
    """A record with valid checksums, whatever it says."""
    size = len(body) if length is None else length
    head = struct.pack("<4sIQII", b"\xd5REC", size, first, count, zlib.crc32(body))
    return head + struct.pack("<I", zlib.crc32(head)) + body


def array(
    code: int, shape: tuple[int, ...], data: bytes = b"", *, ndim: int | None = None
) -> bytes:
    dimensions = len(shape) if ndim is None else ndim
    return struct.pack(f"<BB{len(shape)}I", code, dimensions, *shape) + data


def refused(path: Path, match: str) -> None:
    """Check that a journal is refused soon, by a short message, and left as it is."""
    before, began = path.read_bytes(), time.monotonic()
    with pytest.raises(CheckpointError, match=match) as caught:
        Journal(path)
    assert time.monotonic() - began < 5
    assert len(str(caught.value)) < 1_000
    assert path.read_bytes() == before


def test_every_flipped_bit_of_the_last_two_records_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = filled(path, 2, 3, 2)
    data = path.read_bytes()
    for bit in range(8 * sizes[1], 8 * sizes[3]):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="damaged"):
            Journal(path)
        assert path.read_bytes() == changed


def test_every_flipped_bit_of_the_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    filled(path, 2)
    data = path.read_bytes()
    for bit in range(8 * HEADER_BYTES):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"damaged in its header|not a journal"):
            Journal(path)


FORGED: dict[str, Callable[[], bytes]] = {
    "an unknown type": lambda: record(1, 1, array(200, (1,), b"1234") * 2),
    "a shape without data": lambda: record(1, 1, array(7, (4_000_000_000, 4_000_000_000))),
    "shapes whose product overflows": lambda: record(1, 1, array(7, (2**32 - 1,) * 40) * 2),
    "too many dimensions": lambda: record(1, 1, array(7, (1,) * 200, bytes(4)) * 2),
    "dimensions that are missing": lambda: record(1, 1, array(7, (), ndim=255)),
    "more events than there are": lambda: record(1, 2**32 - 1, array(7, (1,), bytes(4)) * 2),
    "fewer events than there are": lambda: record(1, 1, array(7, (1,), bytes(4)) * 4),
    "a truth value of 7": lambda: record(1, 1, array(0, (2,), b"\x07\x01") * 2),
    "no events but bytes": lambda: record(1, 0, b"1234"),
    "a number far ahead": lambda: record(2**63, 1, array(7, (1,), bytes(4)) * 2),
    "the last number there is": lambda: record(2**64 - 1, 1, array(7, (1,), bytes(4)) * 2),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_record_that_lies_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(header(0, uuid4()) + FORGED[kind]())
    refused(path, "is damaged: event|bytes follow event|jumps from sequence 0")


def test_a_base_that_no_sequence_can_follow_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(header(2**64 - 1, uuid4()))
    refused(tmp_path / "journal", "damaged in its header")


def test_a_record_that_claims_gigabytes_is_torn_and_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(header(0, uuid4()) + record(1, 1, b"123", length=2**32 - 1))
    with Journal(path) as journal:
        assert journal.last == 0
    assert path.stat().st_size == HEADER_BYTES


def test_many_false_records_do_not_take_forever(tmp_path: Path) -> None:
    """Each header is valid and claims all bytes that follow it."""
    path, count = tmp_path / "journal", 20_000
    size = count * RECORD_HEADER_BYTES
    false = [
        record(1, 1, b"", length=size - (index + 1) * RECORD_HEADER_BYTES) for index in range(count)
    ]
    path.write_bytes(header(0, uuid4()) + b"".join(false))
    refused(path, "events up to 0 are lost, but later ones exist")


def test_bytes_at_random_are_refused(tmp_path: Path) -> None:
    drawn = random.Random(0)
    path = tmp_path / "journal"
    for _ in range(50):
        path.write_bytes(header(0, uuid4()) + b"\xd5REC" + drawn.randbytes(60))
        refused(path, "is damaged after sequence 0")


def test_a_journal_of_another_learner_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "journal", 2)
    with Journal(tmp_path / "journal") as journal:
        learner = journal.learner
    with pytest.raises(CheckpointError, match="belongs to another learner"):
        Journal(tmp_path / "journal", learner=uuid4())
    with Journal(tmp_path / "journal", learner=learner) as journal:
        journal.restart(2)
    with Journal(tmp_path / "journal") as journal:
        assert journal.learner == learner


def test_a_journal_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600
        journal.append(entries(1, 2))
        journal.restart(2)
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", ["before the rename", "after the rename"])
def test_a_restart_ahead_of_the_last_entry_that_fails_is_settled_first(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next append finds out which file the path leads to, and then which number is next."""
    path = tmp_path / "journal"
    filled(path, 2)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    name = "sync_directory" if place == "after the rename" else "os.replace"
    with Journal(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(f"dynopt_ray.storage.{name}", fail)
            with pytest.raises(CheckpointError, match="Input/output error"):
                journal.restart(10)
        journal.append(entries(11 if place == "after the rename" else 3, 1))
        assert journal.last == (11 if place == "after the rename" else 3)
    with Journal(path) as journal:
        assert journal.last == (11 if place == "after the rename" else 3)


def test_an_interrupted_append_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shorter record over a longer one would be followed by the rest of the longer one."""
    path = tmp_path / "journal"
    size = filled(path, 2)[-1]

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt("stop")

    with Journal(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr("os.fdatasync", interrupted)
            with pytest.raises(KeyboardInterrupt, match="stop"):
                journal.append(entries(3, 20))
        assert path.stat().st_size == size
        journal.append(entries(3, 1))
    with Journal(path) as journal:
        assert journal.last == 3


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.empty((2**33, 0), np.float32), r"shape \(8589934592, 0\); a journal keeps at most"),
        (np.broadcast_to(np.float32(0), (2**31,)), "takes 8589934592 bytes; a journal keeps"),
        (np.broadcast_to(np.float32(0), (2**40,)), "a journal keeps at most"),
        ([10**400], "is an array of object"),
    ],
)
def test_arrays_that_no_record_can_hold_are_refused_by_their_name(
    value: object, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"^x .*{reason}"):
        storable("x", value)
    if isinstance(value, np.ndarray):
        with Journal(tmp_path / "journal") as journal:
            with pytest.raises(DataError, match=reason):
                journal.append([Entry(1, value, np.asarray(0))])
            journal.append(entries(1, 1))


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot open journal"):
        Journal(tmp_path)
    with pytest.raises(CheckpointError, match="cannot open journal"):
        Journal(tmp_path / "missing" / "journal")


def test_what_is_appended_after_closing_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.close()
    with pytest.raises(LearnerError, match="it was closed"):
        journal.append(entries(1, 1))
