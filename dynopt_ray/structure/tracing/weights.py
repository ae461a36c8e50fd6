"""Which tensors of a forward pass are weights: parameters, or results that are zero where they are.

Zeros in a weight hide new units from the result, and training can change them. A product of factors
is a weight if one of them is: the labels of the result are those of the factor that is zero for new
units, and the other factors are not. So of a weight and its mask the weight is zero; of a weight
and data (modulated convolutions) as well. `w * w` or `w.square()` is no weight, because its
gradient vanishes at zero. It still vanishes with the weight, so sums of it are the same with new
units.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import JOINS_ZEROS, KEEPS_ZEROS, operations
from dynopt_ray.structure.units import ID, IdArray, Labels

_LIKE_ANOTHER = {"to", "type_as", "view_as", "reshape_as", "expand_as"}
"""Operations that take only the shape, type or device of their second operand."""

_SUMS = operations("add", "__add__", "__radd__", "sub", "subtract", "__sub__")
_PRODUCTS = operations("matmul", "__matmul__", "mm", "bmm", "einsum")
_VANISH = operations(
    *("pow", "__pow__", "float_power", "square", "abs", "__abs__", "relu", "sum", "nansum"),
    *("mean", "norm", "vector_norm", "renorm"),
)
"""Operations whose result is zero where all of its operand is, but may not learn there."""

_WITH_DATA, _FROZEN, _CONSTANT = 1, 2, 4

Ties = Sequence[tuple[IdArray, IdArray]]


class Weights:
    """The weights of one pass.

    Args:
        tensors: the parameters and buffers with which the network runs, by name.
        buffers: the names of those that training does not change.
        frozen: the names of parameters that do not require a gradient.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        buffers: Collection[str] = (),
        frozen: Collection[str] = (),
    ) -> None:
        ranks = {n: _CONSTANT if n in buffers else _FROZEN * (n in frozen) for n in tensors}
        self._known = {id(t): (t, ranks[name]) for name, t in tensors.items()}
        self._vanishing: dict[int, Tensor] = {}
        self._alike: list[tuple[IdArray, IdArray]] = []

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._known

    def is_pure(self, tensor: Tensor) -> bool:
        """Return whether a tensor is made of parameters and buffers alone."""
        return tensor in self and not self.rank(tensor) & _WITH_DATA

    def rank(self, tensor: Tensor) -> int:
        """Return a number that is the lower, the better a weight can be zero for new units."""
        return self._known[id(tensor)][1]

    def vanishes(self, tensor: Tensor) -> bool:
        """Return whether a tensor is zero for new units if the weights that made it are."""
        return tensor in self or id(tensor) in self._vanishing

    def pass_on(self, source: Tensor, made: Tensor) -> None:
        """Note that `made` is zero where `source` is, and has the same dimensions."""
        if source in self:
            self._add(made, self.rank(source))
        elif self.vanishes(source):
            self._vanishing[id(made)] = made

    def in_order(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return factors with the one last that should be zero for new units."""
        highest = 2 * _CONSTANT
        return sorted(tensors, key=lambda t: -self.rank(t) if t in self else -highest)

    def reader(self, tensors: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, int]:
        """Return the factor that weights the units which a product sums over, and its dimension."""
        weights = [(t, dim) for t, dim in tensors if t in self]
        if weights:
            lowest = min(self.rank(t) for t, _ in weights)
            return [(t, dim) for t, dim in weights if self.rank(t) == lowest][-1]
        return ([(t, dim) for t, dim in tensors if self.vanishes(t)] or list(tensors))[-1]

    def follow(
        self,
        func: Callable[..., Any],
        read: Any,
        made: Any,
        *,
        ties: Ties,
        labels: Callable[[Tensor], Labels],
    ) -> None:
        """Note the result of an operation on weights.

        Args:
            func: the operation.
            read: its arguments.
            made: its result.
            ties: the ties that its rule noted.
            labels: returns the labels of a tensor.
        """
        if func not in _FOLLOWED and func not in KEEPS_ZEROS and func not in JOINS_ZEROS:
            return
        tensors = list(tensors_in(read))
        if func.__name__ in _LIKE_ANOTHER:
            tensors = tensors[:1]
        here = [t for t in tensors if t in self]
        if not here:
            self._note_vanishing(func, tensors, made)
        elif func in JOINS_ZEROS or func in _SUMS:
            # The result is zero only where all operands are, so a reader of one reads them all.
            if len(here) == len(tensors) and (func in JOINS_ZEROS or len(here) == 2):
                self._alike += ties
                self._add(made, max(map(self.rank, here)))
        elif func in _PRODUCTS:
            if len(here) == len(tensors) and _differ(here, labels):
                self._add(made, min(map(self.rank, here)))
        elif func in KEEPS_ZEROS and _differ(here, labels) and not _divides(func, tensors, here):
            data = any(labels(t) for t in tensors if t not in self)
            self._add(made, min(map(self.rank, here)) | (_WITH_DATA if data else 0))
        else:
            self._note_vanishing(func, tensors, made)

    def alike(self, ids: IdArray) -> IdArray:
        """Return the ids with those of all weights that were placed beside or added to them."""
        found, size = ids.ravel(), 0
        while self._alike and len(found) > size:
            size = len(found)
            beside = [p for one, other in self._alike for p in ((one, other), (other, one))]
            new = [other.ravel() for one, other in beside if np.isin(one, found).any()]
            found = np.unique(np.concatenate([found, *new]))
        return found

    def _add(self, made: Any, rank: int) -> None:
        self._known.update((id(t), (t, rank)) for t in tensors_in(made))

    def _note_vanishing(self, func: Callable[..., Any], read: Sequence[Tensor], made: Any) -> None:
        if func in _VANISH or func in KEEPS_ZEROS:
            factors = read[:1] if func in _VANISH or "div" in func.__name__ else read
            if any(map(self.vanishes, factors)):
                self._vanishing.update((id(t), t) for t in tensors_in(made))


_FOLLOWED = _SUMS | _PRODUCTS | _VANISH


def _differ(weights: Sequence[Tensor], labels: Callable[[Tensor], Labels]) -> bool:
    """Return whether factors stem from different parameters: the gradient of w·w vanishes at 0."""
    if len(weights) < 2:
        return True
    none: list[IdArray] = [np.zeros(0, ID)]
    owned = [
        np.unique(np.concatenate(none + [label.ids.ravel() for label in labels(weight)]))
        for weight in weights
    ]
    return len(np.unique(np.concatenate(owned))) == sum(map(len, owned))


def _divides(func: Callable[..., Any], read: Sequence[Tensor], here: Sequence[Tensor]) -> bool:
    """Return whether an operation divides by a weight: w/w is undefined at zero."""
    return "div" in func.__name__ and not (read[0] is here[0] and len(here) == 1)
