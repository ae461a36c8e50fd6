"""What episodes need of the networks they run on; implemented stacked and one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.arrays import FloatArray, IntArray
from dynopt_ray.policies import Descriptors


@dataclass(frozen=True, eq=False)
class Measured:
    """How all networks do, (N,) each.

    Attributes:
        metric: the task's metric on validation data.
        smooth: its smoother sibling, `Metrics.smooth`, which rewards are made of.
        loss: validation loss.
        train_loss: mean loss over the latest training batches, each before its step; at the start
            the loss on the training split.
    """

    metric: FloatArray
    smooth: FloatArray
    loss: FloatArray
    train_loss: FloatArray


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

    def read(self, cursor: IntArray) -> Descriptors:
        """Read all networks, each at its own group."""

    def apply(self, reading: Descriptors, actions: IntArray) -> None:
        """Carry out one legal action on each network, as it was read."""

    def train(self, active: NDArray[np.bool_]) -> None:
        """Train at least the networks that are active; the others will start over."""

    def measure(self) -> Measured:
        """How all networks do now."""
