"""Whole numbers as inputs: embeddings need them as they are, other layers need floats."""

from collections.abc import Callable

import torch
from torch import Tensor

from dynopt_ray.transfers import to_device

# What a network raises if the dtype of its inputs does not suit it.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)


class WholeNumbers:
    """Finds out whether a network takes whole numbers, and converts them to floats if it does not.

    The first events of whole numbers (or booleans) that come decide: they are passed to the network
    as they are. If it refuses them but takes the same numbers as floats, they are converted from
    then on. Events that it refuses in both forms decide nothing. Floats are never changed.

    Args:
        dtype: the floating type of the network.
        device: the device of the network.
        forward: mini-batch -> outputs, without changing the network.

    Attributes:
        as_floats: whether whole numbers are converted; None if no event has decided it yet.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, forward: Callable[[Tensor], Tensor]
    ) -> None:
        self._dtype = dtype
        self._device = device
        self._forward = forward
        self.as_floats: bool | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return a mini-batch as the network takes it."""
        if x.is_floating_point() or x.is_complex() or not len(x):
            return x
        if self.as_floats is None:
            self._decide(x)
        return x.to(self._dtype) if self.as_floats else x

    def _decide(self, x: Tensor) -> None:
        if self._takes(x):
            self.as_floats = False
        elif self._takes(x.to(self._dtype)):
            self.as_floats = True

    def _takes(self, x: Tensor) -> bool:
        try:
            self._forward(to_device(x, self._device))
        except _REFUSALS:
            return False
        return True
