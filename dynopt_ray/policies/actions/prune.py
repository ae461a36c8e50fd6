"""Holding weights at zero."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dynopt_ray.arrays import BoolArray, IntArray
from dynopt_ray.policies.actions.amounts import check_fraction
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.unit_scores import producing_weights, pruned
from dynopt_ray.population import Population
from dynopt_ray.structure import CostKind, Edit, Graph, Mask, mask_of


@dataclass(frozen=True)
class PruneWeights:
    """Hold the smallest weights that make the group's units at zero.

    Attributes:
        fraction: the weights masked in each parameter, as a fraction of those not masked yet, in
            (0, 1]; one always stays.
        label: what tables and messages call it.

    Raises:
        ValueError: a fraction out of its range.
    """

    fraction: float = 0.3
    label: str = "prune"
    ends = False
    lowers: frozenset[CostKind] = frozenset({"nonzero"})

    def __post_init__(self) -> None:
        check_fraction("prune", self.fraction)

    def weights(self, networks: Descriptors) -> IntArray:
        """The weights to mask in each parameter that makes the group's units, (N, parameters)."""
        unmasked = networks.num_unmasked_each
        count = np.floor(self.fraction * unmasked).astype(np.int64)
        return np.where(count < unmasked, count, 0)

    def legal(self, networks: Descriptors) -> BoolArray:
        """Where a weight can be masked."""
        return np.asarray(self.weights(networks).sum(1) > 0)

    def plan(self, graph: Graph, network: Descriptors) -> list[Edit]:
        """Mask the parameters that make the group under the cursor."""
        group = graph.groups[int(network.cursor[0])]
        parameters = producing_weights(graph, group)
        counts = self.weights(network)[0]  # 0 beyond the last parameter
        return [
            Mask(name, keep=pruned(weight, mask_of(weight), int(count)))
            for (name, weight), count in zip(parameters.items(), counts, strict=False)
            if count
        ]

    def apply_stacked(
        self,
        population: Population,
        layer: int,
        members: IntArray,
        networks: Descriptors,
        inputs: Tensor,  # noqa: ARG002
    ) -> None:
        """Mask the layer's weights in each member."""
        counts = self.weights(networks)[:, 0]
        outputs, inputs_of = population.sizes(layer)
        for member in members:
            rows, columns = int(outputs[member]), int(inputs_of[member])
            held = population.masks[layer]
            kept_OI = pruned(
                population.weights[layer][member, :rows, :columns],
                None if held is None else held[member, :rows, :columns],
                int(counts[member]),
            )
            population.set_mask(layer, int(member), kept_OI)
