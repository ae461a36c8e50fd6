"""The action that removes units."""

from dataclasses import dataclass

import numpy as np
import torch

from dynopt_ray.arrays import BoolArray, IntArray
from dynopt_ray.policies.actions.action import by_layer
from dynopt_ray.policies.actions.amounts import at_least_one, check_fraction
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.evidence import GraphEvidence, StackEvidence
from dynopt_ray.policies.unit_scores import group_scores, lowest, stacked_scores
from dynopt_ray.population import MarkedUnits, Population, shrink_marked
from dynopt_ray.structure import CostKind, Edit, Graph, Shrink
from dynopt_ray.transfers import array_to_device


@dataclass(frozen=True)
class ShrinkUnits:
    """Remove the units with the lowest scores; the layers that read them are refitted.

    Attributes:
        fraction: number of units to remove, as a fraction of the group's present width, in (0, 1].
        label: the action's name in tables and messages.

    Raises:
        ValueError: the fraction is out of its range.
    """

    fraction: float = 0.3
    label: str = "shrink"
    ends = False
    whole = False
    lowers: frozenset[CostKind] = frozenset({"params", "nonzero", "flops", "bytes", "latency_ms"})

    def __post_init__(self) -> None:
        check_fraction("shrink", self.fraction)

    def units(self, networks: Descriptors) -> IntArray:
        """Return how many units to remove, (N,), a multiple of the group's step; 0 if none can."""
        wanted = at_least_one(self.fraction * networks.width / networks.step)
        room = (networks.width - networks.min_width) // networks.step
        return np.asarray(networks.step * np.clip(np.minimum(wanted, room), 0, None))

    def legal(self, networks: Descriptors) -> BoolArray:
        """Return which networks have units that can be removed, (N,)."""
        return self.units(networks) > 0

    def plan(self, graph: Graph, network: Descriptors, evidence: GraphEvidence) -> list[Edit]:  # noqa: ARG002
        """Return the edit that shrinks the group under the cursor."""
        group = graph.groups[int(network.cursor[0])]
        scores_NU = group_scores(graph, group)[None].cpu()
        count_N = torch.from_numpy(self.units(network))
        gone_NU = lowest(scores_NU, torch.tensor([group.width], device="cpu"), count_N)
        return [Shrink(group.name, remove=torch.nonzero(gone_NU[0]).flatten().tolist())]

    def apply_stacked(
        self,
        population: Population,
        members: IntArray,
        networks: Descriptors,
        evidence: StackEvidence,
    ) -> None:
        """Shrink the layer under the cursor in each of the members."""
        for layer, here in by_layer(networks, members):
            num_gone = self.units(networks)[here]
            gone_NU = lowest(
                stacked_scores(population, layer, population.places(here)),
                array_to_device(population.widths[here, layer], population.device),
                array_to_device(num_gone, population.device),
            )
            units = MarkedUnits(gone_NU, num_gone)
            shrink_marked(population, here, {layer: units}, compensate_NI=evidence.x)
