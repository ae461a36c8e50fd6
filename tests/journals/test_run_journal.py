"""The journal of a run: what was acknowledged is there, or the journal says that it is not."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dynopt_ray.errors import RunError
from dynopt_ray.journals import LocalLines, RunJournal, lines_at, read_journal

RECORDS: list[tuple[str, dict[str, Any]]] = [
    ("drawn", {"trial": 0, "config": {"lr": 0.1, "name": "λ\n\u2028"}}),
    ("measured", {"trial": 0, "accuracy": 0.1 + 0.2, "cost": 1e-300, "final": False}),
    ("ended", {"trial": 0, "error": None}),
]


@dataclass
class Content:
    """JournalLines in memory, to try thousands of contents without a disk."""

    content: bytes
    name: str = "memory"

    def lock(self) -> None:
        pass

    def read(self) -> bytes:
        return self.content

    def cut(self, size: int) -> None:
        self.content = self.content[:size]

    def append(self, line: bytes) -> None:
        self.content += line

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def written(path: Path, records: list[tuple[str, dict[str, Any]]] = RECORDS) -> bytes:
    with RunJournal(LocalLines(path)) as journal:
        for kind, fields in records:
            journal.append(kind, **fields)
    return path.read_bytes()


def read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(record.kind, record.fields) for record in read_journal(LocalLines(path))]


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    content = written(path)
    assert read(path) == RECORDS
    lines = [json.loads(line) for line in content.decode().splitlines()]
    assert [line["record"]["kind"] for line in lines] == ["drawn", "measured", "ended"]
    with RunJournal(LocalLines(path)) as journal:
        assert [(record.kind, record.fields) for record in journal.records] == RECORDS
        journal.append("measured", trial=1)
    assert len(read(path)) == 4


def test_a_write_torn_at_any_byte_loses_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    content = written(tmp_path / "journal.jsonl")
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content)):
        lines = Content(content[:size])
        kept = RECORDS[: sum(end <= size for end in ends)]
        assert [(r.kind, r.fields) for r in read_journal(lines)] == kept, size
        with RunJournal(lines) as journal:
            journal.append("after", size=size)
        found = [(r.kind, r.fields) for r in read_journal(lines)]
        assert found == [*kept, ("after", {"size": size})], size


def test_a_torn_line_is_cut_off_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(written(path)[:-20])
    with RunJournal(LocalLines(path)) as journal:
        journal.append("after")
    assert read(path) == [*RECORDS[:2], ("after", {})]


def test_a_block_of_zeros_after_a_power_failure_is_a_torn_write(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(written(path) + bytes(4096))
    assert read(path) == RECORDS
    with RunJournal(LocalLines(path)) as journal:
        journal.append("after")
    assert len(read(path)) == 4


def test_any_flipped_bit_of_the_last_two_lines_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    content = written(path)
    for place in range(content.index(b"\n") + 1, len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            with pytest.raises(RunError, match=r"is damaged in line [23]: .* keep only the first"):
                read_journal(Content(bytes(changed)))
    path.write_bytes(changed)
    with pytest.raises(RunError, match="is damaged"):
        RunJournal(LocalLines(path))
    assert path.read_bytes() == bytes(changed)  # nothing is cut off


@pytest.mark.parametrize("change", ["dropped", "doubled", "swapped"])
def test_lines_that_are_missing_or_out_of_order_are_damage(change: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first, second, third = written(path).splitlines(keepends=True)
    lines = {
        "dropped": [first, third],
        "doubled": [first, second, second, third],
        "swapped": [second, first, third],
    }[change]
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match="is damaged in line"):
        read_journal(LocalLines(path))


def test_only_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with RunJournal(LocalLines(path)) as journal:
        journal.append("drawn")
        with pytest.raises(RunError, match="another process is writing"):
            RunJournal(LocalLines(path))
        assert read(path) == [("drawn", {})]  # reading needs no lock
    with RunJournal(LocalLines(path)) as journal:
        assert len(journal.records) == 1


def test_the_lock_of_a_killed_process_is_gone_and_its_records_are_not(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from dynopt_ray.journals import LocalLines, RunJournal\n"
        "journal = RunJournal(LocalLines(Path(sys.argv[1])))\n"
        "for n in range(50): journal.append('measured', n=n)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    with RunJournal(LocalLines(path)) as journal:
        assert [record["n"] for record in journal.records] == list(range(50))


def test_records_are_synced_in_groups_and_before_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fdatasync = os.fdatasync

    def noted(descriptor: int) -> None:
        synced.append(descriptor)
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", noted)
    with RunJournal(LocalLines(tmp_path / "a"), sync_every_s=1000) as journal:
        for n in range(10):
            journal.append("measured", n=n)
        assert not synced
        journal.sync()
        journal.sync()  # nothing new
        assert len(synced) == 1
    with RunJournal(LocalLines(tmp_path / "b"), sync_every_s=0) as journal:
        journal.append("measured")
        assert len(synced) == 2


def test_a_full_disk_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    journal = RunJournal(LocalLines(path))
    journal.append("measured", n=0)
    pwrite, left = os.pwrite, [40]

    def full(descriptor: int, data: bytes, place: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = pwrite(descriptor, data[: left[0]], place)
        left[0] -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(RunError, match="No space left on device; what was written before"):
            journal.append("measured", n=1)
    journal.append("measured", n=2)  # there is room again
    journal.close()
    assert [fields["n"] for _, fields in read(path)] == [0, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes"])
def test_what_json_cannot_hold_is_refused_and_nothing_is_written(
    value: object, tmp_path: Path
) -> None:
    path = tmp_path / "journal.jsonl"
    with RunJournal(LocalLines(path)) as journal:
        with pytest.raises(RunError, match="the record 'measured' cannot be written"):
            journal.append("measured", value=value)
        journal.append("measured", value=1.0)
    assert read(path) == [("measured", {"value": 1.0})]


def test_segments_under_a_uri_hold_the_same_records(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    with RunJournal(lines_at(uri), sync_every_s=1000) as journal:
        for kind, fields in RECORDS[:2]:
            journal.append(kind, **fields)
        assert read_journal(lines_at(uri)) == ()  # not acknowledged yet
        journal.sync()
        journal.append(RECORDS[2][0], **RECORDS[2][1])
    assert [(r.kind, r.fields) for r in read_journal(lines_at(uri))] == RECORDS
    assert len(list((tmp_path / "run" / "journal").iterdir())) == 2
    with RunJournal(lines_at(uri)) as journal:
        assert len(journal.records) == 3
        journal.append("after")
    assert len(read_journal(lines_at(uri))) == 4


def test_a_missing_or_changed_segment_is_damage(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    with RunJournal(lines_at(uri), sync_every_s=0) as journal:
        for kind, fields in RECORDS:
            journal.append(kind, **fields)
    _, second, third = sorted((tmp_path / "run" / "journal").iterdir())
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(RunError, match="is damaged in line 2"):
        read_journal(lines_at(uri))
    second.write_bytes(content[:-1])
    with pytest.raises(RunError, match="is damaged in line 2"):
        read_journal(lines_at(uri))
    second.write_bytes(content)
    third.write_bytes(third.read_bytes()[:-5])
    with pytest.raises(RunError, match="ends within a line"):
        RunJournal(lines_at(uri))
    assert not (tmp_path / "run" / "journal" / "lock.json").exists()


def test_a_second_driver_under_a_uri_is_refused_until_the_first_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"file://{tmp_path}/run"
    first = RunJournal(lines_at(uri))
    with pytest.raises(RunError, match=r"\(process \d+\) is writing to file://"):
        RunJournal(lines_at(uri))
    lock = tmp_path / "run" / "journal" / "lock.json"
    held = json.loads(lock.read_text())
    lock.write_text(json.dumps(held | {"beat": held["beat"] - 61}))
    with RunJournal(lines_at(uri)):
        monkeypatch.setattr("dynopt_ray.journals.lines._HEARTBEAT_S", -1.0)
        first.append("measured")
        with pytest.raises(RunError, match="another driver has taken over"):
            first.sync()
