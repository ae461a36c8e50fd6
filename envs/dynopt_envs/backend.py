"""What episodes need of the networks they run on; implemented stacked and one by one."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.arrays import IntArray
from dynopt_ray.policies import Descriptors, Performance

NOTHING = -1
"""The place of no action: the network stays as it is."""


class Backend(Protocol):
    """N networks of one task that change and learn."""

    num_samples: int
    """Training rows."""

    num_groups: int
    """Width groups of each network."""

    def start(self, members: Sequence[int], starts: Sequence[int], seeds: Sequence[int]) -> None:
        """Make members copies of networks of the pool.

        Args:
            members: which networks start over.
            starts: which network of the pool each becomes.
            seeds: what each one's batches and new weights are drawn from.
        """

    def describe(self, cursor: IntArray) -> Descriptors:
        """Describe all networks, each at its own group."""

    def apply(self, networks: Descriptors, actions: IntArray) -> None:
        """Carry out one legal action on each network.

        Args:
            networks: what `describe` said of them.
            actions: (N,), places in the action set, or `NOTHING`.
        """

    def train(self, active: NDArray[np.bool_]) -> None:
        """Train at least the networks that are active; the others will start over."""

    def measure(self) -> Performance:
        """How all networks do now."""
