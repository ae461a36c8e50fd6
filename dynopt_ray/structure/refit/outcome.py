"""What compensation refitted in a plan, and what it had to leave."""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

_MOST_NAMED = 3
_TO_CALLER_OF_APPLY = 6


class Refits:
    """The weights that compensation refitted, and those that it cannot refit, in forward order."""

    def __init__(self) -> None:
        self._done: dict[str, None] = {}
        self._left: dict[str, None] = {}

    def note(
        self,
        lossy: Collection[str],
        refitted: Collection[str],
        consumers: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Note the outcome of one stage of a plan.

        Args:
            lossy: the tensors that read removed units.
            refitted: the tensors with new values, biases and means among them.
            consumers: the uses of weights that can be refitted.
            tensors: the parameters and buffers of the network.
        """
        self._done.update((name, None) for name in refitted if name in consumers)
        self._left.update(
            (name, None)
            for name, tensor in tensors.items()
            if name in lossy and name not in refitted and isinstance(tensor, nn.Parameter)
        )

    @property
    def done(self) -> tuple[str, ...]:
        """The names of the weights that were refitted."""
        return tuple(self._done)

    @property
    def left(self) -> tuple[str, ...]:
        """The names of the parameters that read removed units and were not refitted."""
        return tuple(name for name in self._left if name not in self._done)

    def warn(self) -> None:
        """Warn of weights that were left."""
        if self.left:
            some = ", ".join(map(repr, self.left[:_MOST_NAMED]))
            more = ", …" * (len(self.left) > _MOST_NAMED)
            warnings.warn(
                f"compensate: {some}{more} read removed units but cannot be refitted: only weights "
                "of linear layers, convolutions and other products can, unless weight norm or the "
                "like makes them. Retrain the network",
                stacklevel=_TO_CALLER_OF_APPLY,
            )
