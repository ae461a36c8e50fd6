"""Reading the IDX file format of MNIST and its successors."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.errors import DataError

# The third byte of a file encodes the type of its values; all values are big-endian.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> NDArray[Any]:
    """Read the array in an IDX file, plain or gzip-compressed, in native byte order.

    Raises:
        DataError: the file is missing, truncated, damaged, longer than its header says, or
            not an IDX file.

    References:
        LeCun, Cortes & Burges, "The MNIST database": the file format. Two zero bytes, the
        type, the number of dimensions, each dimension as four bytes, then the values.
    """
    path = Path(path)
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise DataError(
            f"{path} is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'} "
            f"instead of 00 00, a type and the number of dimensions"
        )
    dtype, num_dims = np.dtype(_DTYPES[content[2]]), content[3]
    start = 4 + 4 * num_dims
    if len(content) < start:
        raise DataError(f"{path} is truncated: it ends within its header of {start} bytes")
    shape = tuple(np.frombuffer(content, ">u4", count=num_dims, offset=4).tolist())
    expected = start + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        what = "truncated" if len(content) < expected else "longer than its header says"
        raise DataError(
            f"{path} is {what}: shape {shape} takes {expected} bytes, there are {len(content)}"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def _content(path: Path) -> bytes:
    """The content of a file, decompressed if it is gzip, whatever the file's name."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error
