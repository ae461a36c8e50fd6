"""Convert arrays of any library to tensors; errors name the row and column that cannot be used."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynopt_ray.errors import DataError
from dynopt_ray.tasks.objectives import TargetKind


def as_features(value: Any, *, where: str) -> Tensor:
    """Convert inputs to a tensor of two or more dimensions, rows first.

    Floats and booleans become torch's default dtype. Whole numbers become int64, because
    embeddings need them. An array that already fits is not copied, even if it is read-only.

    Args:
        value: array, tensor, Series or DataFrame.
        where: the name of the value in messages.

    Raises:
        DataError: there are no rows, there are fewer than two dimensions, or a value is not a
            finite number (the message names its row and column).
    """
    tensor, columns = as_tensor(value, where=where)
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.get_default_dtype())
    if tensor.dim() < 2:
        raise DataError(
            f"{where} has shape {tuple(tensor.shape)}; inputs need rows and columns: "
            f"write x[:, None] for a single column"
        )
    _check_rows(tensor, where)
    return _finite(tensor, columns, where)


def as_targets(value: Any, *, kind: TargetKind | None, where: str) -> Tensor:
    """Convert targets to a tensor of int64 labels or of floats.

    Args:
        value: array, tensor, Series or DataFrame; booleans count as 0 and 1.
        kind: the kind of targets that the loss needs. None takes whole numbers as labels and
            floats as numbers.
        where: the name of the value in messages.

    Raises:
        DataError: there are no rows, labels are floats or negative (the message names the row),
            or a value is not a finite number.
    """
    tensor, columns = as_tensor(value, where=where)
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.int64)
    if tensor.dim() == 0:
        raise DataError(f"{where} is a single value; targets need one row per sample")
    _check_rows(tensor, where)
    if kind == "numbers":
        tensor = tensor.to(torch.get_default_dtype())
    tensor = _finite(tensor, columns, where)
    if tensor.is_floating_point():
        if kind == "labels":
            raise DataError(
                f"{where} holds {_dtype(value)}; labels must be whole numbers 0, 1, …: write "
                f"y.astype('int64'), or loss='mse' if they are quantities"
            )
    elif int(tensor.min()) < 0:
        at = int((tensor.flatten() < 0).nonzero()[0])
        raise DataError(
            f"{where}, {_place(tensor, at, columns)}: label {int(tensor.flatten()[at])}; labels "
            f"are the classes 0, 1, …: renumber them, e.g. by numpy.unique(y, return_inverse=True)"
        )
    return tensor


def as_tensor(value: Any, *, where: str) -> tuple[Tensor, list[str] | None]:
    """Convert a value to a bool, int64 or default-float tensor; also return its column names.

    Raises:
        DataError: the value is not an array of real numbers.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or value.layout != torch.strided:
            raise DataError(f"{where} is {value.dtype}, {value.layout}; give dense real numbers")
        return _usual_dtype(value.detach()), None
    columns = [str(name) for name in value.columns] if hasattr(value, "columns") else None
    try:
        array = value.to_numpy() if hasattr(value, "to_numpy") else np.asarray(value)
    except ValueError as error:
        raise DataError(f"{where} cannot become an array: {error}") from error
    if array.dtype == object:
        array = _numbers(array, columns, where)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{where} holds {array.dtype}, not numbers; encode it first, or use the task 'tabular' "
            f"for tables with texts"
        )
    return _usual_dtype(wrap(np.asarray(_native(array), order="C"))), columns


def wrap(array: NDArray[Any]) -> Tensor:
    """Make a tensor that shares the memory of an array.

    torch warns about read-only arrays, such as those in a shared object store. The warning is
    suppressed because tasks never write to their data. Copying the array instead would cost its
    size in every process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """Convert to a dtype that torch has: native byte order, no unsigned or extended types."""
    if array.dtype.kind == "u":
        return array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _usual_dtype(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return tensor
    return tensor.to(torch.get_default_dtype() if tensor.is_floating_point() else torch.int64)


def _numbers(array: NDArray[Any], columns: list[str] | None, where: str) -> NDArray[Any]:
    """Convert an object array of numbers to floats; `float` alone would also accept texts."""
    for at, cell in enumerate(array.flat):
        if not isinstance(cell, int | float | np.number | np.bool_):
            place = _place(torch.empty(array.shape, device="meta"), at, columns)
            raise DataError(f"{where}, {place}: {cell!r} is not a number")
    return array.astype(np.float64)


def _check_rows(tensor: Tensor, where: str) -> None:
    if tensor.numel() == 0:
        raise DataError(f"{where} is empty: its shape is {tuple(tensor.shape)}")


def _finite(tensor: Tensor, columns: list[str] | None, where: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        at = int(bad.flatten().nonzero()[0])
        raise DataError(
            f"{where}, {_place(tensor, at, columns)}: {tensor.flatten()[at].item()} as "
            f"{tensor.dtype} (and {int(bad.sum()) - 1} more); every value must be finite: drop or "
            f"fill such rows first"
        )
    return tensor


def _place(tensor: Tensor, at: int, columns: list[str] | None) -> str:
    """Describe the place of the element with a flat index; rows and columns count from 0."""
    row, *rest = (int(index) for index in np.unravel_index(at, tuple(tensor.shape)))
    if not rest:
        return f"row {row}"
    if len(rest) == 1:
        return f"row {row}, column {repr(columns[rest[0]]) if columns else rest[0]}"
    return f"row {row}, position {tuple(rest)}"


def _dtype(value: Any) -> str:
    return str(getattr(value, "dtype", type(value).__name__))
