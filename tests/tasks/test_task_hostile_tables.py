"""Tables in files that are damaged, or made to take all memory or time."""

import bz2
import gzip
import io
import lzma
import os
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynopt_ray.errors import DataError
from dynopt_ray.tasks import load_task

CSV = "a,b,y\n" + "".join(f"{i % 7},{i % 5}.5,{i % 2}\n" for i in range(60))


def zipped(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", text)
    return buffer.getvalue()


def tarred(text: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("a.csv")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def zstandard(text: str) -> bytes:
    return bytes(pa.Codec("zstd").compress(text.encode(), asbytes=True))


ARCHIVES: dict[str, Callable[[str], bytes]] = {
    "t.csv.gz": lambda text: gzip.compress(text.encode()),
    "t.csv.bz2": lambda text: bz2.compress(text.encode()),
    "t.csv.xz": lambda text: lzma.compress(text.encode()),
    "t.csv.zip": zipped,
    "t.csv.tar": tarred,
    "t.csv.tar.gz": lambda text: gzip.compress(tarred(text)),
    "t.csv.zst": zstandard,
}


def refusal(path: Path) -> str:
    """Return the message with which a table is refused, within seconds."""
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        load_task("tabular", {"path": str(path), "target": "y"})
    assert time.perf_counter() - start < 30
    assert len(str(caught.value)) <= 4_000
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name in ARCHIVES if name != "t.csv.zst"])
def test_whole_archives_are_read_and_damaged_ones_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    whole = ARCHIVES[name](CSV)
    path.write_bytes(whole)
    x, _ = load_task("tabular", {"path": str(path), "target": "y"}).arrays("train")
    assert x.shape == (36, 2)
    for damaged in (whole[: min(len(whole) // 3, 700)], b"junk" + whole[4:], b"", whole[:12]):
        path.write_bytes(damaged)
        assert "cannot read" in refusal(path)


def test_zstandard_needs_its_package_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("zstandard", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "t.csv.zst"
    path.write_bytes(zstandard(CSV))
    message = refusal(path)
    assert "zst" in message
    assert message.endswith("Or convert the file to .csv, .csv.gz or .parquet")


def test_a_file_that_expands_without_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(300):
            file.write(b"1,1,0\n" * 200_000)
    assert "holds more than 268,435,456 bytes, which is too much to read" in refusal(path)
    path = tmp_path / "t.parquet"
    nothing = pa.array(np.zeros(20_000_000, dtype=np.int8))
    pq.write_table(pa.table(dict.fromkeys("abcdefgy", nothing)), path)
    assert "holds 20,000,000 rows of 8 columns, which is too much to read" in refusal(path)


def test_texts_of_parquet_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    bad = pa.array([b"\xff\xfe", b"xy"] * 30)
    texts = pa.Array.from_buffers(pa.string(), 60, bad.buffers())
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": texts, "y": [0, 1] * 30}), path)
    assert "Invalid UTF8 sequence" in refusal(path)


def test_too_many_columns_are_refused(tmp_path: Path) -> None:
    names = [*(f"c{i}" for i in range(30_000)), "y"]
    path = tmp_path / "t.csv"
    path.write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    assert "has 30,001 columns; at most 10,000 are read" in refusal(path)


@pytest.mark.slow
def test_too_many_encoded_columns_are_refused(tmp_path: Path) -> None:
    rows = 20_000
    names = [*(f"c{i}" for i in range(300)), "y"]
    lines = [",".join([f"t{row % 100}"] * 300 + [str(row % 2)]) for row in range(rows)]
    path = tmp_path / "t.csv"
    path.write_text(",".join(names) + "\n" + "\n".join(lines))
    assert "would become 20,000 rows of 30,000 numbers" in refusal(path)


def test_a_message_about_cells_of_megabytes_is_short(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{i},{i % 2}" for i in range(30)] + ["x" * 5_000_000 + ",0"]
    path.write_text("a,y\n" + "\n".join(rows))
    assert "is not a number, but most values of the column are" in refusal(path)


def test_numbers_that_are_too_large_to_standardise_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "".join(f"1e{300 + i % 9},{i % 2}\n" for i in range(60)))
    assert "column 'a' holds numbers up to 1e+308, which are too large" in refusal(path)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / name).mkdir()
    assert "it is not a regular file" in refusal(tmp_path / "directory" / name)
    os.mkfifo(tmp_path / name)
    assert "it is not a regular file" in refusal(tmp_path / name)
