"""Finds losses and metrics that compare every row's output with the targets of all rows.

Outputs of shape (rows, 1) and targets of shape (rows,) look alike, but an elementwise operation
broadcasts them to (rows, rows). The mean of this matrix is a plausible number, and minimising it
teaches the network the mean target. A function of the user's own may handle such a pair correctly,
e.g. by `output[:, 0]`, so the shapes alone prove nothing. Neither does the value alone.

The proof has two parts. First, a mean over all pairs of rows does not change if the targets are
given in another order. Second, a function that only broadcasts accepts two arguments of one shape,
whichever of the two that is, and returns the same value for both, because rows are then aligned; it
differs from the first value. A function that lines rows up itself changes with the order of the
targets, fails for one of the new shapes, or returns other values for them.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dynopt_ray.errors import DataError

_Value = TypeVar("_Value", bound=Tensor | float)
_TOLERANCE = 1e-5
_UNSUITABLE = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


@dataclass(frozen=True)
class SeparateRows(Generic[_Value]):
    """A loss or metric that is refused if it compares every row with every other.

    Attributes:
        function: (output, targets) -> value.
        kind: what the function is, for messages: "loss" or "metric".
    """

    function: Callable[[Tensor, Tensor], _Value]
    kind: str

    def __call__(self, output: Tensor, targets: Tensor) -> _Value:
        """Return the value of the function.

        Raises:
            DataError: the function broadcasts outputs and targets against each other.
        """
        value = self.function(output, targets)
        if _could_mix(output, targets) and self._mixes(output, targets, value):
            shapes = f"{tuple(output.shape)} and targets of shape {tuple(targets.shape)}"
            raise DataError(
                f"for outputs of shape {shapes}, the {self.kind} compares every row with every "
                f"other row by broadcasting; give both one shape, e.g. targets y[:, None], or "
                f"output[:, 0] in the {self.kind}"
            )
        return value

    def _mixes(self, output: Tensor, targets: Tensor, value: _Value) -> bool:
        try:
            found = _number(value)
            if not _close(found, self._quietly(output, targets.roll(1, 0))):
                return False
            one = self._quietly(output.reshape(targets.shape), targets)
            other = self._quietly(output, targets.reshape(output.shape))
        except _UNSUITABLE:
            return False  # the function is made for the original shapes
        return _close(one, other) and not _close(one, found)

    def _quietly(self, output: Tensor, targets: Tensor) -> float:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _number(self.function(output, targets))


def separate_rows(
    function: Callable[[Tensor, Tensor], _Value], kind: str
) -> Callable[[Tensor, Tensor], _Value]:
    """Return a loss or metric that is refused if it compares every row with every other."""
    return function if isinstance(function, SeparateRows) else SeparateRows(function, kind)


def without_ones(shape: torch.Size) -> tuple[int, ...]:
    """Return the shape of rows without dimensions of size 1, except for the first dimension."""
    return (*shape[:1], *(size for size in shape[1:] if size != 1))


def _could_mix(output: object, targets: object) -> bool:
    """Whether several rows of outputs and targets differ in dimensions of size 1 only."""
    if not isinstance(output, Tensor) or not isinstance(targets, Tensor):
        return False
    if output.shape == targets.shape or targets.ndim == 0 or len(targets) == 1:
        return False
    return without_ones(output.shape) == without_ones(targets.shape)


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_TOLERANCE)
