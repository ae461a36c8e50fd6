import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynopt_ray.errors import CheckpointError, DataError, LearnerError
from dynopt_ray.online import Entry, Journal

ARRAYS = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.float16]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


def entry(sequence: int, size: int = 4) -> Entry:
    x = np.random.default_rng(sequence).normal(size=size).astype(np.float32)
    return Entry(sequence, x, np.asarray(sequence % 10))


def filled(path: Path, *batches: int) -> list[int]:
    """A journal with records of so many entries; returns the file's size after each."""
    journal, sizes = Journal(path), [path.stat().st_size]
    for size in batches:
        journal.append([entry(journal.last + 1 + index) for index in range(size)])
        sizes.append(path.stat().st_size)
    journal.close()
    return sizes


def sequences(path: Path) -> list[int]:
    with Journal(path) as journal:
        return [e.sequence for e in journal.entries()]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ARRAYS, ARRAYS), min_size=1, max_size=5))
def test_what_is_read_is_what_was_appended(
    tmp_path: Path, pairs: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    with Journal(path) as journal:
        journal.append([Entry(1 + i, x, y) for i, (x, y) in enumerate(pairs)])
    with Journal(path) as again:
        read = list(again.entries())
    assert [e.sequence for e in read] == list(range(1, 1 + len(pairs)))
    for got, (x, y) in zip(read, pairs, strict=True):
        for a, b in ((got.x, x), (got.y, y)):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert a.tobytes() == np.ascontiguousarray(b).tobytes()


def test_entries_start_where_told(tmp_path: Path) -> None:
    filled(tmp_path / "j", 3, 4)
    with Journal(tmp_path / "j") as journal:
        assert [e.sequence for e in journal.entries(after=4)] == [5, 6, 7]
        assert not list(journal.entries(after=7))
        journal.append([entry(8)])
        assert [e.sequence for e in journal.entries(after=6)] == [7, 8]


def test_a_torn_last_record_is_dropped_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "j"
    *_, before, size = filled(path, 3, 2, 2)
    data = path.read_bytes()
    for length in range(before, size):
        path.write_bytes(data[:length])
        journal = Journal(path)
        assert journal.last == 5
        assert path.stat().st_size == before
        journal.append([entry(6)])
        journal.close()
        assert sequences(path) == [1, 2, 3, 4, 5, 6]


def test_a_cut_tail_is_synced_before_anything_is_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "j", list[int]()
    before, size = filled(path, 3, 2)[1:]
    path.write_bytes(path.read_bytes()[: size - 1])
    monkeypatch.setattr("os.fsync", lambda file: synced.append(os.fstat(file).st_size))
    with Journal(path):
        assert synced == [before]


def test_data_that_look_like_a_record_hide_no_good_one(tmp_path: Path) -> None:
    path = tmp_path / "j"
    like_a_record = np.frombuffer(b"\xd5REC" * 20, dtype=np.uint8)
    with Journal(path) as journal:
        journal.append([entry(1)])
        end = path.stat().st_size
        journal.append([Entry(2, like_a_record, np.asarray(0))])
        journal.append([entry(3)])
    data = bytearray(path.read_bytes())
    data[end + 9] ^= 0x10  # in the head of the second
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="events up to 2 are lost, but later ones exist"):
        Journal(path)
    assert path.read_bytes() == bytes(data)
    # Torn, its last record is dropped, whatever its data look like.
    data[end + 9] ^= 0x10
    path.write_bytes(data[: -(len(data) - end) // 2])
    assert sequences(path) == [1]


def test_more_than_a_record_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynopt_ray.online.durable.journal.MAX_BODY_BYTES", 100)
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(LearnerError, match=r"5 events take \d+ bytes; send fewer"):
            journal.append([entry(1 + index) for index in range(5)])
        assert journal.last == 0
        journal.append([entry(1), entry(2)])
    assert sequences(tmp_path / "j") == [1, 2]


@pytest.mark.parametrize("place", [0, 5, 20, 27, 40, -1])
def test_a_damaged_last_record_is_not_taken_for_a_torn_one(place: int, tmp_path: Path) -> None:
    """Its events were acknowledged, so they must not be dropped without a word."""
    path = tmp_path / "j"
    *_, before, size = filled(path, 3, 2)
    changed = bytearray(path.read_bytes())
    changed[place + (before if place >= 0 else 0)] ^= 1
    path.write_bytes(changed)
    with pytest.raises(
        CheckpointError,
        match=rf"after sequence 3: the record at byte {before} of {size} is complete.*acknowledged",
    ):
        Journal(path)
    assert path.read_bytes() == bytes(changed)


def test_a_tail_of_zeros_is_a_torn_record(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path, 3)
    with open(path, "ab") as file:
        file.write(bytes(500))
    assert sequences(path) == [1, 2, 3]


def test_a_flipped_bit_is_refused_wherever_it_is_the_last_record_included(tmp_path: Path) -> None:
    path = tmp_path / "j"
    sizes = filled(path, 3, 2, 2)
    data = path.read_bytes()
    for place in range(sizes[3]):
        changed = bytearray(data)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"damaged|not a journal"):
            Journal(path)
        assert path.read_bytes() == bytes(changed)


def test_a_lost_record_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    sizes = filled(path, 3, 2, 2)
    data = path.read_bytes()
    path.write_bytes(data[: sizes[1]] + data[sizes[2] :])
    with pytest.raises(CheckpointError, match="jumps from sequence 3 to 6"):
        Journal(path)


@pytest.mark.parametrize("wrong", [[2], [1, 3], [0], [2, 1]])
def test_entries_out_of_sequence_are_refused(wrong: list[int], tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(LearnerError, match="the next sequence of the journal is 1"):
            journal.append([entry(sequence) for sequence in wrong])
        journal.append([entry(1)])
        assert journal.last == 1


def test_data_that_cannot_be_kept_are_refused_whole(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(DataError, match="x is an array of object"):
            journal.append([entry(1), Entry(2, np.asarray([None]), np.asarray(0))])
        assert journal.last == 0
    assert sequences(tmp_path / "j") == []


def test_restarting_empties_it_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path, 5)
    journal = Journal(path)
    with pytest.raises(LearnerError, match="would lose entries up to 5"):
        journal.restart(4)
    journal.restart(5)
    assert path.stat().st_size == 36
    journal.append([entry(6)])
    journal.close()
    assert sequences(path) == [6]
    assert os.listdir(tmp_path) == ["j"]


def test_a_full_disk_refuses_the_events_and_keeps_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    size = filled(path, 3)[-1]
    journal = Journal(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(LearnerError, match=r"File too large; events 4 to 8 were not accepted"):
            journal.append([entry(4 + index) for index in range(5)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == size
    journal.append([entry(4)])
    journal.close()
    assert sequences(path) == [1, 2, 3, 4]


def test_every_append_is_synced_once_after_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "j", list[int]()
    fdatasync = os.fdatasync

    def noted(descriptor: int) -> None:
        fdatasync(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr("os.fdatasync", noted)
    with Journal(path) as journal:
        sizes = []
        for size in (1, 3, 2):
            journal.append([entry(journal.last + 1 + index) for index in range(size)])
            sizes.append(path.stat().st_size)
            # When `append` returns, the disk has everything that the file holds.
            assert synced == sizes
        journal.append([])
    assert synced == sizes


def test_a_sync_that_fails_takes_the_events_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    size = filled(path, 3)[-1]
    truncated: list[int] = []
    with Journal(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr("os.fdatasync", _failing)
            patch.setattr("os.fsync", lambda file: truncated.append(os.fstat(file).st_size))
            with pytest.raises(LearnerError, match=r"Input/output error; events 4 to 5 were not"):
                journal.append([entry(4), entry(5)])
        assert truncated == [size]  # and the cut is on disk, too
        assert journal.last == 3
        assert path.stat().st_size == size
        assert [e.sequence for e in journal.entries()] == [1, 2, 3]
        journal.append([entry(4)])
    assert sequences(path) == [1, 2, 3, 4]


def test_a_failed_write_that_cannot_be_taken_back_closes_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    filled(path, 3)
    with Journal(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr("os.fdatasync", _failing)
            patch.setattr("os.fsync", _failing)
            with pytest.raises(LearnerError, match="events 4 were not accepted"):
                journal.append([entry(4)])
        # What lies behind the last good record is not known any more.
        with pytest.raises(LearnerError, match=r"could not be undone \(Input/output error\)"):
            journal.append([entry(4)])
        assert journal.last == 3
    assert sequences(path) == [1, 2, 3]


def _failing(_: int) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), KeyboardInterrupt("stop")])
@pytest.mark.parametrize("place", ["before the rename", "after the rename"])
def test_a_restart_that_fails_loses_nothing_appended_later(
    place: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    filled(path, 5)

    def fail(_: object, /, *__: object) -> None:
        raise failure

    name = "sync_directory" if place == "after the rename" else "os.replace"
    with Journal(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(f"dynopt_ray.storage.{name}", fail)
            wanted = CheckpointError if isinstance(failure, OSError) else KeyboardInterrupt
            with pytest.raises(wanted, match=r"Input/output error|^stop$"):
                journal.restart(5)
        journal.append([entry(6)])
        assert [e.sequence for e in journal.entries(after=5)] == [6]
    assert sequences(path)[-1] == 6
    assert os.listdir(tmp_path) == ["j"]


def test_events_are_refused_until_a_failed_restart_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "j", 5)
    syncs: list[Path] = []

    def fail(directory: Path) -> None:
        syncs.append(directory)
        raise OSError(5, "Input/output error")

    with Journal(tmp_path / "j") as journal:
        with monkeypatch.context() as patch:
            for module in ("storage", "online.durable.journal"):
                patch.setattr(f"dynopt_ray.{module}.sync_directory", fail)
            with pytest.raises(CheckpointError, match="Input/output error"):
                journal.restart(5)
            # Power may fail: the directory might still lead to the journal of before.
            with pytest.raises(LearnerError, match=r"Input/output error; events 6 were not"):
                journal.append([entry(6)])
        assert len(syncs) == 2
        journal.append([entry(6)])
    assert sequences(tmp_path / "j") == [6]


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.close()
    with pytest.raises(LearnerError, match="it was closed"):
        journal.append([entry(1)])
    with pytest.raises(LearnerError, match="it was closed"):
        journal.restart(1)
