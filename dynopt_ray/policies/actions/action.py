"""The `Action` protocol: one way to change the width group under the cursor."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dynopt_ray.arrays import BoolArray, IntArray
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.population import Population
from dynopt_ray.structure import CostKind, Edit, Graph

ActionMask = NDArray[np.int8]
"""1 if an action is legal, else 0."""


class Action(Protocol):
    """A change of a fixed kind and amount, for real and for stacked networks.

    An action changes the width group under each network's cursor. Shapes: N networks.
    """

    @property
    def label(self) -> str:
        """The action's name in tables and messages, unique within an action set."""

    @property
    def ends(self) -> bool:
        """Whether the action ends the episode instead of changing the network."""

    @property
    def lowers(self) -> frozenset[CostKind]:
        """The kinds of cost that the action can lower."""

    def legal(self, networks: Descriptors) -> BoolArray:
        """Return for which networks the action is legal, (N,): those that it would change.

        Keep and stop are always legal.
        """

    def plan(self, graph: Graph, network: Descriptors) -> list[Edit]:
        """Return the edits that carry out the action on one network.

        Args:
            graph: the network.
            network: the descriptors of this network alone. The action must be legal on it.

        Returns:
            The edits; empty if the action does not change the network.
        """

    def apply_stacked(
        self,
        population: Population,
        layer: int,
        members: IntArray,
        networks: Descriptors,
        inputs: Tensor,
    ) -> None:
        """Change stacked networks in place, just as the edits of `plan` would change each of them.

        Args:
            population: all networks.
            layer: the hidden layer under the cursor of `members`.
            members: indices of the networks to change. The action must be legal on them.
            networks: the descriptors of all networks of the population.
            inputs: training rows (rows, features) for refits.
        """


class Unchanging:
    """The base of `Keep` and `Stop`, which change nothing and are always legal."""

    lowers: frozenset[CostKind] = frozenset()

    def legal(self, networks: Descriptors) -> BoolArray:
        """Return True for all networks."""
        return np.ones(len(networks.cursor), dtype=np.bool_)

    def plan(self, graph: Graph, network: Descriptors) -> list[Edit]:  # noqa: ARG002
        """Return no edits."""
        return []

    def apply_stacked(
        self,
        population: Population,
        layer: int,
        members: IntArray,
        networks: Descriptors,
        inputs: Tensor,
    ) -> None:
        """Do nothing."""
