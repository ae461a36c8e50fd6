"""IDX files: read back what was written, refuse what is not whole."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dynopt_ray.errors import DataError
from dynopt_ray.tasks.builtin.idx import read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: NDArray[np.generic]) -> bytes:
    header = struct.pack(">BBBB", 0, 0, CODES[array.dtype.str[1:]], array.ndim)
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return header + shape + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("dtype", list(CODES))
@pytest.mark.parametrize("compressed", [True, False])
def test_reads_what_was_written(tmp_path: Path, dtype: str, compressed: bool) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    content = idx(array)
    path = tmp_path / "whatever-the-name"
    path.write_bytes(gzip.compress(content) if compressed else content)
    read = read_idx(path)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


WHOLE = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[:-1], r"truncated: shape \(2, 3, 4\) takes 40 bytes, there are 39"),
        (WHOLE + b"!", "longer than its header says: .* takes 40 bytes, there are 41"),
        (WHOLE[:10], "truncated: it ends within its header of 16 bytes"),
        (b"", "not an IDX file: it begins with nothing"),
        (b"\x89PNG\r\n", "not an IDX file: it begins with 89 50 4e 47"),
        (b"\0\0\x07\x01" + WHOLE[4:], "not an IDX file: it begins with 00 00 07 01"),
        (gzip.compress(WHOLE, mtime=0)[:-9], "truncated or damaged"),
        (gzip.compress(WHOLE, mtime=0)[:12] + b"\xff" * 20, "truncated or damaged"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*images: No such file"):
        read_idx(tmp_path / "images")
