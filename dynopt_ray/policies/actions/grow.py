"""The action that adds units."""

from dataclasses import dataclass

import numpy as np

from dynopt_ray.arrays import BoolArray, IntArray
from dynopt_ray.policies.actions.action import by_layer
from dynopt_ray.policies.actions.amounts import at_least_one, check_fraction
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.evidence import GraphEvidence, StackEvidence
from dynopt_ray.population import Population, grow
from dynopt_ray.structure import CostKind, Edit, Graph, Grow


@dataclass(frozen=True)
class GrowUnits:
    """Add units, without changing the network's output if the group allows that.

    Attributes:
        fraction: number of units to add, as a fraction of the group's present width, in (0, 1].
        max_growth: the largest width, as a multiple of the group's width at the start, >= 1.
        label: the action's name in tables and messages.

    Raises:
        ValueError: a number is out of its range.
    """

    fraction: float = 0.3
    max_growth: float = 1.5
    label: str = "grow"
    ends = False
    whole = False
    lowers: frozenset[CostKind] = frozenset()

    def __post_init__(self) -> None:
        check_fraction("grow", self.fraction)
        if not self.max_growth >= 1:
            raise ValueError(f"grow: max_growth is {self.max_growth}; it must be at least 1")

    def units(self, networks: Descriptors) -> IntArray:
        """Return how many units to add, (N,), a multiple of the group's step; 0 at the limit."""
        width, step = networks.width, networks.step
        room = np.floor(self.max_growth * networks.start_width).astype(np.int64) - width
        wanted = at_least_one(self.fraction * width / step)
        return np.asarray(step * np.clip(np.minimum(wanted, room // step), 0, None))

    def legal(self, networks: Descriptors) -> BoolArray:
        """Return which networks have room for more units, (N,)."""
        return self.units(networks) > 0

    def plan(self, graph: Graph, network: Descriptors, evidence: GraphEvidence) -> list[Edit]:  # noqa: ARG002
        """Return the edit that grows the group under the cursor."""
        group = graph.groups[int(network.cursor[0])]
        units = int(self.units(network)[0])
        return [Grow(group.name, units=units, exact=group.exact_growth)]

    def apply_stacked(
        self,
        population: Population,
        members: IntArray,
        networks: Descriptors,
        evidence: StackEvidence,  # noqa: ARG002
    ) -> None:
        """Grow the layer under the cursor in each of the members."""
        units = self.units(networks)
        for layer, here in by_layer(networks, members):
            grow(population, layer, {int(member): int(units[member]) for member in here})
