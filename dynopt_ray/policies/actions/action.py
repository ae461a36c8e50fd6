"""What an action is: one thing that a policy may do to the width group under its cursor."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dynopt_ray.arrays import BoolArray, IntArray
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.population import Population
from dynopt_ray.structure import CostKind, Edit, Graph

ActionMask = NDArray[np.int8]
"""1 where an action is legal, 0 elsewhere."""


class Action(Protocol):
    """A change of known kind and amount, for real networks and for stacked ones.

    Shapes: N networks. The networks that an action is given have their cursor on the group that
    it changes.
    """

    @property
    def label(self) -> str:
        """What tables and messages call it; no two actions of a set share a label."""

    @property
    def ends(self) -> bool:
        """Whether it ends the episode instead of changing the network."""

    @property
    def lowers(self) -> frozenset[CostKind]:
        """The kinds of cost that it can lower."""

    def legal(self, networks: Descriptors) -> BoolArray:
        """Which networks it may be applied to, (N,): those that it would change.

        Keeping and stopping are always legal.
        """

    def plan(self, graph: Graph, network: Descriptors) -> list[Edit]:
        """The edits that it stands for.

        Args:
            graph: a network.
            network: the descriptors of this very network, on which the action is legal.

        Returns:
            No edits if the network stays as it is.
        """

    def apply_stacked(
        self,
        population: Population,
        layer: int,
        members: IntArray,
        networks: Descriptors,
        inputs: Tensor,
    ) -> None:
        """Change stacked networks in place, as `plan` would change each of them.

        Args:
            population: all networks.
            layer: the hidden layer under the cursor of `members`.
            members: which networks change; the action is legal on them.
            networks: the descriptors of all networks of the population.
            inputs: training rows (rows, features), for refits.
        """


class Unchanging:
    """What `Keep` and `Stop` share: they change nothing and are always legal."""

    lowers: frozenset[CostKind] = frozenset()

    def legal(self, networks: Descriptors) -> BoolArray:
        """All networks."""
        return np.ones(len(networks.cursor), dtype=np.bool_)

    def plan(self, graph: Graph, network: Descriptors) -> list[Edit]:  # noqa: ARG002
        """No edits."""
        return []

    def apply_stacked(
        self,
        population: Population,
        layer: int,
        members: IntArray,
        networks: Descriptors,
        inputs: Tensor,
    ) -> None:
        """Change nothing."""
