"""The bytes of a journal's records: events as arrays of numbers.

body  = (x y)*
array = type (u8) | dimensions (u8) | sizes (u32 each) | bytes
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynopt_ray.errors import CheckpointError, DataError

_TYPES = ("?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "u2", "u4")
_CODES = {np.dtype(name): code for code, name in enumerate(_TYPES)}
_ADVICE = f"convert it to one of the NumPy types {', '.join(_TYPES)}"
_MAX_DIMENSIONS = 64  # of NumPy's arrays
_MAX_SIZE = 2**32 - 1
MAX_BODY_BYTES = 2**32 - 1
"""The largest size of a record's events."""


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
        DataError: the value is not an array of numbers, or its type, its shape or its size cannot
            be kept in a journal.
    """
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        array = np.asarray(value)
        _check_storable(name, array)
        return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    except DataError:
        raise
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise DataError(f"{name} is not an array of numbers: {error}") from None


def _check_storable(name: str, array: NDArray[Any]) -> None:
    if array.dtype.newbyteorder("=") not in _CODES:
        raise DataError(f"{name} is an array of {array.dtype}; {_ADVICE}")
    if array.ndim > _MAX_DIMENSIONS or max(array.shape, default=0) > _MAX_SIZE:
        raise DataError(
            f"{name} has shape {array.shape!s:.200}; a journal keeps at most {_MAX_DIMENSIONS} "
            f"dimensions of at most {_MAX_SIZE} each"
        )
    if array.nbytes > MAX_BODY_BYTES:
        raise DataError(
            f"{name} takes {array.nbytes} bytes; a journal keeps events of at most "
            f"{MAX_BODY_BYTES} bytes. Send smaller mini-batches"
        )


def stored_bytes(x: NDArray[Any], y: NDArray[Any]) -> int:
    """Return the size of an event in a journal.

    Raises:
        DataError: the event is too large for a journal.
    """
    size = sum(2 + 4 * array.ndim + array.nbytes for array in (x, y))
    if size > MAX_BODY_BYTES:
        raise DataError(
            f"x and y take {size} bytes together; a journal keeps events of at most "
            f"{MAX_BODY_BYTES} bytes. Send smaller mini-batches"
        )
    return size


def encode(entry: Entry) -> bytes:
    """Return an event as bytes.

    Raises:
        DataError: its data cannot be kept in a journal.
    """
    return _encode_array("x", entry.x) + _encode_array("y", entry.y)


def decode(first: int, count: int, body: bytes) -> Iterator[Entry]:
    """Yield the `count` events of a record's body.

    Raises:
        CheckpointError: the bytes are not `count` events.
    """
    position = 0
    for sequence in range(first, first + count):
        try:
            x, position = _decode_array(body, position)
            y, position = _decode_array(body, position)
        except (struct.error, ValueError, IndexError) as error:
            raise CheckpointError(f"event {sequence} is damaged: {error}") from error
        yield Entry(sequence, x, y)
    if position != len(body):
        raise CheckpointError(f"{len(body) - position} bytes follow event {first + count - 1}")


def _encode_array(name: str, array: NDArray[Any]) -> bytes:
    _check_storable(name, array)
    code = _CODES[array.dtype.newbyteorder("=")]
    shape = struct.pack(f"<BB{array.ndim}I", code, array.ndim, *array.shape)
    return shape + np.ascontiguousarray(array, dtype=_TYPES[code]).tobytes()


def _decode_array(body: bytes, position: int) -> tuple[NDArray[Any], int]:
    code, ndim = struct.unpack_from("<BB", body, position)
    shape = struct.unpack_from(f"<{ndim}I", body, position + 2)
    dtype = np.dtype(_TYPES[code])
    position += 2 + 4 * ndim
    size = math.prod(shape)
    end = position + size * dtype.itemsize
    if end > len(body):
        raise ValueError(f"it has shape {shape!s:.200}, but only {len(body) - position} bytes")
    if dtype == np.bool_ and max(body[position:end], default=0) > 1:
        raise ValueError("a truth value is neither 0 nor 1")
    # NumPy takes a size of 0 for "to the end".
    array = np.frombuffer(body[position:end], dtype) if size else np.empty(0, dtype)
    return array.reshape(shape).copy(), end
