"""Arrays of any library as tensors that can be learned from, or an error that says where not."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynopt_ray.errors import DataError
from dynopt_ray.tasks.objectives import TargetKind


def as_features(value: Any, *, where: str) -> Tensor:
    """Inputs as a tensor of two or more dimensions, rows first.

    Floats become torch's default dtype and booleans too; whole numbers become int64, as
    embeddings need them. An array that already fits is not copied, even if it is read-only.

    Raises:
        DataError: no rows, fewer than two dimensions, or a value that is not a finite number
            (with its row and column).
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
    """Targets as a tensor: int64 labels or floats.

    Args:
        value: array, tensor, Series or DataFrame; booleans count as 0 and 1.
        kind: what the loss needs. None leaves whole numbers labels and floats numbers.
        where: how messages name it.

    Raises:
        DataError: no rows, labels that are floats or negative (with the row), or a value that
            is not a finite number.
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
    """The value as a bool, int64 or default-float tensor, and its column names if it has any.

    Raises:
        DataError: something that is not an array of numbers.
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
    """A tensor over the array's own memory.

    torch warns about arrays that are read-only, as those in a shared object store are. Tasks
    never write to their data, so the warning is not passed on; a copy would cost its size in
    every process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """In a dtype that torch has: native byte order, no unsigned or extended kinds."""
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
    """An object array as floats, if each cell is a number; `float` alone would take texts too."""
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
    """Where the element with a flat index is; rows and columns count from 0."""
    row, *rest = (int(index) for index in np.unravel_index(at, tuple(tensor.shape)))
    if not rest:
        return f"row {row}"
    if len(rest) == 1:
        return f"row {row}, column {repr(columns[rest[0]]) if columns else rest[0]}"
    return f"row {row}, position {tuple(rest)}"


def _dtype(value: Any) -> str:
    return str(getattr(value, "dtype", type(value).__name__))
