"""The `Action` protocol: one way to change a network."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.arrays import BoolArray, IntArray
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.evidence import GraphEvidence, StackEvidence
from dynopt_ray.population import Population
from dynopt_ray.structure import CostKind, Edit, Graph

ActionMask = NDArray[np.int8]
"""1 if an action is legal, else 0."""


class Action(Protocol):
    """A change of a fixed kind and amount, for real and for stacked networks.

    An action changes the width group under each network's cursor, or the whole network. Shapes: N
    networks.
    """

    @property
    def label(self) -> str:
        """The action's name in tables and messages, unique within an action set."""

    @property
    def ends(self) -> bool:
        """Whether the action ends the episode instead of changing the network."""

    @property
    def whole(self) -> bool:
        """Whether the action concerns the whole network, not only the group under the cursor."""

    @property
    def lowers(self) -> frozenset[CostKind]:
        """The kinds of cost that the action can lower."""

    def legal(self, networks: Descriptors) -> BoolArray:
        """Return for which networks the action is legal, (N,): those that it would change.

        Keep and stop are always legal.
        """

    def plan(self, graph: Graph, network: Descriptors, evidence: GraphEvidence) -> list[Edit]:
        """Return the edits that carry out the action on one network.

        Args:
            graph: the network.
            network: the descriptors of this network alone. The action must be legal on it.
            evidence: training rows, and scores of the network's units.

        Returns:
            The edits; empty if the action does not change the network.
        """

    def apply_stacked(
        self,
        population: Population,
        members: IntArray,
        networks: Descriptors,
        evidence: StackEvidence,
    ) -> None:
        """Change stacked networks in place, just as the edits of `plan` would change each of them.

        Args:
            population: all networks.
            members: indices of the networks to change. The action must be legal on them.
            networks: the descriptors of all networks of the population.
            evidence: training rows, and scores of the units of all networks of the population.
        """


class Unchanging:
    """The base of `Keep` and `Stop`, which change nothing and are always legal."""

    whole: bool = True
    lowers: frozenset[CostKind] = frozenset()

    def legal(self, networks: Descriptors) -> BoolArray:
        """Return True for all networks."""
        return np.ones(len(networks.cursor), dtype=np.bool_)

    def plan(self, graph: Graph, network: Descriptors, evidence: GraphEvidence) -> list[Edit]:  # noqa: ARG002
        """Return no edits."""
        return []

    def apply_stacked(
        self,
        population: Population,
        members: IntArray,
        networks: Descriptors,
        evidence: StackEvidence,
    ) -> None:
        """Do nothing."""


def by_layer(networks: Descriptors, members: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Yield each layer under the cursor of some members, and those members, in forward order."""
    cursor = networks.cursor[members]
    for layer in np.unique(cursor):
        yield int(layer), members[cursor == layer]
