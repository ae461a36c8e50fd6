"""What a policy may do to the width group under its cursor, and when that is allowed."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.arrays import IntArray

ActionMask = NDArray[np.int8]
"""1 where an action is legal."""


class ActionKind(IntEnum):
    """One decision. The cursor moves to the next group after each."""

    KEEP = 0
    """Change nothing; only train."""
    GROW = 1
    """Add units."""
    SHRINK = 2
    """Remove the units with the lowest scores; what reads them is refitted."""
    PRUNE = 3
    """Hold the smallest weights that make the group's units at zero."""
    STOP = 4
    """End here; no more training either."""


@dataclass(frozen=True)
class ActionSet:
    """How much each action changes.

    Attributes:
        grow_fraction: units added, as a fraction of the group's present width.
        shrink_fraction: units removed, as a fraction of its present width.
        prune_fraction: weights masked, as a fraction of those not masked yet.
        max_growth: the largest width, as a multiple of the group's width at the start.

    Raises:
        ValueError: a fraction outside (0, 1], or `max_growth` below 1.
    """

    grow_fraction: float = 0.3
    shrink_fraction: float = 0.3
    prune_fraction: float = 0.3
    max_growth: float = 1.5

    def __post_init__(self) -> None:
        for name in ("grow_fraction", "shrink_fraction", "prune_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in (0, 1]")
        if self.max_growth < 1:
            raise ValueError(f"max_growth is {self.max_growth}; it must be at least 1")

    def units_to_grow(self, width: IntArray, start_width: IntArray, step: IntArray) -> IntArray:
        """Units that `GROW` adds, a multiple of `step`; 0 where the group is at its limit."""
        room = np.floor(self.max_growth * start_width).astype(np.int64) - width
        wanted = _at_least_one(self.grow_fraction * width / step)
        return np.asarray(step * np.clip(np.minimum(wanted, room // step), 0, None))

    def units_to_shrink(self, width: IntArray, min_width: IntArray, step: IntArray) -> IntArray:
        """Units that `SHRINK` removes, a multiple of `step`; 0 where none can go."""
        wanted = _at_least_one(self.shrink_fraction * width / step)
        room = (width - min_width) // step
        return np.asarray(step * np.clip(np.minimum(wanted, room), 0, None))

    def weights_to_prune(self, num_unmasked: IntArray) -> IntArray:
        """Weights of one parameter that `PRUNE` masks; a few always stay."""
        count = np.floor(self.prune_fraction * num_unmasked).astype(np.int64)
        return np.where(count < num_unmasked, count, 0)


def action_mask(grown: IntArray, shrunk: IntArray, pruned: IntArray) -> ActionMask:
    """Which actions are legal: those that would change something, and always keep and stop.

    Args:
        grown: units that growing would add to each network's group, (networks,).
        shrunk: units that shrinking would remove.
        pruned: weights that pruning would mask.

    Returns:
        int8 (networks, actions), 1 where legal.
    """
    mask = np.ones((len(grown), len(ActionKind)), dtype=np.int8)
    mask[:, ActionKind.GROW] = grown > 0
    mask[:, ActionKind.SHRINK] = shrunk > 0
    mask[:, ActionKind.PRUNE] = pruned > 0
    return mask


def legal_action(wish: ActionKind, action_mask: ActionMask) -> int:
    """What is wished for if it is legal; else keep; where a budget forbids that, get smaller."""
    for action in (wish, ActionKind.KEEP, ActionKind.SHRINK, ActionKind.PRUNE):
        if action_mask[action]:
            return int(action)
    return int(np.flatnonzero(action_mask)[0])


def _at_least_one(value: NDArray[np.float64]) -> IntArray:
    return np.maximum(1, np.rint(value)).astype(np.int64)
