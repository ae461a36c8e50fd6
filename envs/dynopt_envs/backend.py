"""The `Backend` protocol: what episodes need from the networks that they change and train."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.arrays import IntArray
from dynopt_ray.policies import ActionMask, Descriptors, Performance, Preview

NOTHING = -1
"""In place of an action: leave the network as it is."""


class Backend(Protocol):
    """N networks of some tasks, stacked or one by one, which can be changed and trained."""

    @property
    def num_samples(self) -> IntArray:
        """The number of training rows of each network's task, (N,)."""

    num_starts: int
    """The number of networks of the pool."""

    num_groups: int
    """The number of width groups of each network."""

    def start(self, members: Sequence[int], starts: Sequence[int], seeds: Sequence[int]) -> None:
        """Replace members by copies of networks of the pool.

        Args:
            members: indices of the networks to replace.
            starts: for each member, the index of the network of the pool to copy.
            seeds: for each member, the seed of its batches and new weights.
        """

    def describe(self, cursor: IntArray) -> Descriptors:
        """Return the descriptors of all networks; `cursor` (N,) is the group of each network."""

    def preview(self, networks: Descriptors, action_mask: ActionMask, members: IntArray) -> Preview:
        """Return what each legal action would do to some networks, which do not change.

        Args:
            networks: the descriptors of all networks, from `describe`.
            action_mask: (N, actions), which actions are legal.
            members: the networks to look at.

        Returns:
            A preview with one row per entry of `members`.
        """

    def apply(self, networks: Descriptors, actions: IntArray) -> None:
        """Carry out one legal action on each network.

        Args:
            networks: the descriptors of all networks, from `describe`.
            actions: (N,), places in the action set, or `NOTHING`.
        """

    def train(self, active: NDArray[np.bool_]) -> None:
        """Train at least the active networks. Others may be trained too; they will restart."""

    def measure(self) -> Performance:
        """Return the present performance of all networks."""
