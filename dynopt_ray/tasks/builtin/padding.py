"""Append columns of zeros, so that tasks of different sizes have networks of one size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_pad_to(pad_to: Sequence[int] | None, *, columns: int, classes: int) -> tuple[int, int]:
    """Return the number of input columns and of outputs that a network gets.

    Args:
        pad_to: [columns, classes] to pad to, or None.
        columns: columns of the data.
        classes: classes of the data.

    Raises:
        TypeError: `pad_to` is not a list of two whole numbers.
        ValueError: it is smaller than the data.
    """
    if pad_to is None:
        return columns, classes
    is_pair = isinstance(pad_to, Sequence) and not isinstance(pad_to, str) and len(pad_to) == 2
    if not is_pair or any(isinstance(n, bool) or not isinstance(n, int) for n in pad_to):
        raise TypeError(f"pad_to must be [columns, classes] such as [64, 10], not {pad_to!r}")
    if pad_to[0] < columns or pad_to[1] < classes:
        raise ValueError(
            f"pad_to is {list(pad_to)}, but the task has {columns} columns and {classes} classes; "
            "give at least as many"
        )
    return pad_to[0], pad_to[1]


def padded_columns(values: NDArray[Any], num_columns: int) -> NDArray[Any]:
    """Return rows with columns of zeros appended, (rows, num_columns)."""
    return np.pad(values, ((0, 0), (0, num_columns - values.shape[1])))
