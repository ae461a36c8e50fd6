"""The action that masks weights."""

from dataclasses import dataclass

import numpy as np

from dynopt_ray.arrays import BoolArray, IntArray
from dynopt_ray.policies.actions.action import by_layer
from dynopt_ray.policies.actions.amounts import check_fraction
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.evidence import GraphEvidence, StackEvidence
from dynopt_ray.policies.unit_scores import producing_weights, pruned
from dynopt_ray.population import Population, mask_marked
from dynopt_ray.structure import CostKind, Edit, Graph, Mask, mask_of


@dataclass(frozen=True)
class PruneWeights:
    """Mask the smallest weights that produce the group's units, and refit the others.

    Masked weights are held at zero.

    Attributes:
        fraction: number of weights to mask in each parameter, as a fraction of its unmasked
            weights, in (0, 1). A parameter that would lose its last unmasked weight is skipped.
        label: the action's name in tables and messages.

    Raises:
        ValueError: the fraction is out of its range.
    """

    fraction: float = 0.3
    label: str = "prune"
    ends = False
    whole = False
    lowers: frozenset[CostKind] = frozenset({"nonzero"})

    def __post_init__(self) -> None:
        check_fraction("prune", self.fraction, whole=False)

    def weights(self, networks: Descriptors) -> IntArray:
        """Return how many weights to mask in each parameter that produces the group, (N, P)."""
        unmasked = networks.num_unmasked_each
        count = np.floor(self.fraction * unmasked).astype(np.int64)
        return np.where(count < unmasked, count, 0)

    def legal(self, networks: Descriptors) -> BoolArray:
        """Return which networks have a weight that can be masked, (N,)."""
        return np.asarray(self.weights(networks).sum(1) > 0)

    def plan(self, graph: Graph, network: Descriptors, evidence: GraphEvidence) -> list[Edit]:  # noqa: ARG002
        """Return the edits that mask weights of the group under the cursor."""
        group = graph.groups[int(network.cursor[0])]
        parameters = producing_weights(graph, group)
        counts = self.weights(network)[0]  # 0 beyond the last parameter
        return [
            Mask(name, keep=pruned([weight], [mask_of(weight)], int(count))[0])
            for (name, weight), count in zip(parameters.items(), counts, strict=False)
            if count
        ]

    def apply_stacked(
        self,
        population: Population,
        members: IntArray,
        networks: Descriptors,
        evidence: StackEvidence,
    ) -> None:
        """Mask weights of the layer under the cursor in each of the members."""
        counts = self.weights(networks)[:, 0]
        for layer, here in by_layer(networks, members):
            outputs, inputs = population.sizes(layer)
            places = population.places(here)
            keep_MOI = population.mask(layer)[places]
            for keep, member in zip(keep_MOI, here, strict=True):
                size = slice(int(outputs[member])), slice(int(inputs[member]))
                weight = population.weights[layer][member][size]
                (keep[size],) = pruned([weight], [keep[size]], int(counts[member]))
            mask_marked(population, here, {layer: keep_MOI}, compensate_NI=evidence.x)
