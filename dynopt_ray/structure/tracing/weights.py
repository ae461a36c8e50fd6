"""Which tensors of a forward pass are weights: parameters, or results that are zero where they are.

Zeros in a weight hide new units from the result, and training can change them. `relu(w)` or `w * w`
are no weights: their gradient vanishes at zero.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import JOINS_ZEROS, KEEPS_ZEROS
from dynopt_ray.structure.units import IdArray, Labels

_LIKE_ANOTHER = {"to", "type_as", "view_as", "reshape_as", "expand_as"}
"""Operations that take only the shape, type or device of their second operand."""

Ties = Sequence[tuple[IdArray, IdArray]]


class Weights:
    """The weights of one pass.

    Args:
        tensors: the parameters and buffers with which the network runs, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._known: dict[int, Tensor] = {id(t): t for t in tensors.values()}
        self._scaled: dict[int, tuple[Tensor, frozenset[int]]] = {}
        self._alike: list[tuple[IdArray, IdArray]] = []

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._known

    def hides(self, tensor: Tensor, dim: int) -> bool:
        """Return whether zeros in a weight hide units along a dimension of `tensor`.

        A weight that is scaled by something else (by what a BatchNorm learned, say) hides those
        that the scale does not have.
        """
        _, scales = self._scaled.get(id(tensor), (tensor, None))
        return tensor in self or (scales is not None and dim % tensor.ndim not in scales)

    def add(self, made: Any) -> None:
        """Note that the tensors in `made` are zero wherever the weights that made them are."""
        self._known.update((id(t), t) for t in tensors_in(made))

    def pass_on(self, source: Tensor, made: Tensor) -> None:
        """Note that `made` is zero where `source` is, and has the same dimensions."""
        if source in self:
            self.add(made)
        elif id(source) in self._scaled:
            self._scaled[id(made)] = (made, self._scaled[id(source)][1])

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
            labels: the labels of a tensor.
        """
        if func not in KEEPS_ZEROS and func not in JOINS_ZEROS:
            return
        tensors = list(tensors_in(read))
        if func.__name__ in _LIKE_ANOTHER:
            tensors = tensors[:1]
        here = [t for t in tensors if t in self]
        if not here:
            return
        if func in JOINS_ZEROS:
            # The result is zero only where all operands are, so a reader of one reads them all.
            if len(here) == len(tensors):
                self._alike += ties
                self.add(made)
        elif _learns_at_zero(func, tensors, here):
            others = [t for t in tensors if t not in self and labels(t)]
            if not others:
                self.add(made)
            elif isinstance(made, Tensor):
                scales = frozenset(
                    d + made.ndim - t.ndim for t in others for lab in labels(t) for d in lab.dims
                )
                self._scaled[id(made)] = (made, scales)

    def alike(self, ids: IdArray) -> IdArray:
        """Return the ids with those of all weights that were placed beside them."""
        found, size = ids.ravel(), 0
        while self._alike and len(found) > size:
            size = len(found)
            beside = [p for one, other in self._alike for p in ((one, other), (other, one))]
            new = [other.ravel() for one, other in beside if np.isin(one, found).any()]
            found = np.unique(np.concatenate([found, *new]))
        return found


def _learns_at_zero(
    func: Callable[..., Any], tensors: Sequence[Tensor], weights: Sequence[Tensor]
) -> bool:
    """Return whether a product of weights and of other factors has a gradient at zero."""
    if len(tensors) < 2:
        return True
    if "div" in func.__name__:  # w/w is undefined at zero
        return tensors[0] is weights[0] and len(weights) == 1
    # The gradient of w·w vanishes at zero.
    wide = [t for t in weights if any(t.shape[d] > 1 for d in range(t.ndim))]
    return len({tuple(t.shape) for t in wide}) == len(wide)
