"""The action that removes units everywhere at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from dynopt_ray.arrays import BoolArray, IntArray
from dynopt_ray.policies.actions.amounts import check_fraction
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.evidence import GraphEvidence, StackEvidence
from dynopt_ray.policies.unit_cuts import units_to_remove
from dynopt_ray.population import MarkedUnits, Population, shrink_marked
from dynopt_ray.structure import CostKind, Edit, Graph, Shrink
from dynopt_ray.transfers import to_device


@dataclass(frozen=True)
class ShrinkNetwork:
    """Remove the least important units of the network; the layers that read them are refitted.

    Units of all groups are ranked together, by how much the loss is expected to rise without them
    (see `reconstruction`), and the fewest are removed that leave the wanted FLOPs.

    Attributes:
        left: FLOPs to leave, as a fraction of the present ones, in (0, 1). If no network of these
            widths is as small, every group gets its least width.
        label: the action's name in tables and messages; by default it names the fraction.

    Raises:
        ValueError: the fraction is out of its range.
    """

    left: float = 0.5
    label: str = ""
    ends = False
    whole = True
    lowers: frozenset[CostKind] = frozenset({"params", "nonzero", "flops", "bytes", "latency_ms"})

    def __post_init__(self) -> None:
        check_fraction("shrink_network", self.left, whole=False, name="left")
        if not self.label:
            object.__setattr__(self, "label", f"shrink network to {self.left:g}")

    def legal(self, networks: Descriptors) -> BoolArray:
        """Return which networks have units that can be removed, (N,)."""
        room = networks.widths - networks.min_widths
        return np.asarray((room >= networks.steps).any(1))

    def plan(self, graph: Graph, network: Descriptors, evidence: GraphEvidence) -> list[Edit]:
        """Return the edits that shrink all groups that lose units."""
        names = [group.name for group in graph.groups]

        def flops(widths: Sequence[int]) -> float:
            return float(graph.cost(dict(zip(names, widths, strict=True))).flops)

        gone = units_to_remove(
            evidence.unit_scores,
            network.min_widths[0].tolist(),
            network.steps[0].tolist(),
            flops,
            self.left * flops(network.widths[0].tolist()),
        )
        return [
            Shrink(name, remove=units.tolist())
            for name, units in zip(names, gone, strict=True)
            if len(units)
        ]

    def apply_stacked(
        self,
        population: Population,
        members: IntArray,
        networks: Descriptors,
        evidence: StackEvidence,
    ) -> None:
        """Shrink all layers of each of the members."""
        ends = population.layout.num_inputs, population.layout.num_outputs

        def flops(widths: Sequence[int]) -> float:
            return float(sum(a * b for a, b in pairwise([ends[0], *widths, ends[1]])))

        gone = [
            torch.zeros(len(members), score.shape[1], dtype=torch.bool, device="cpu")
            for score in evidence.unit_scores
        ]
        for place, member in enumerate(members):
            widths = population.widths[member].tolist()
            chosen = units_to_remove(
                [s[member, :w] for s, w in zip(evidence.unit_scores, widths, strict=True)],
                networks.min_widths[member].tolist(),
                networks.steps[member].tolist(),
                flops,
                self.left * flops(widths),
            )
            for marks, units in zip(gone, chosen, strict=True):
                marks[place, torch.from_numpy(units)] = True
        marked = {
            layer: MarkedUnits(to_device(marks, population.device), marks.sum(1).numpy())
            for layer, marks in enumerate(gone)
            if marks.any()
        }
        shrink_marked(population, members, marked, compensate_NI=evidence.x)
