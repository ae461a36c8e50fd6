"""The action that masks weights."""

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
    """Mask the smallest weights that produce the group's units, which holds them at zero.

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

    def plan(self, graph: Graph, network: Descriptors) -> list[Edit]:
        """Return the edits that mask weights of the group under the cursor."""
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
        """Mask weights of the layer in each of the members."""
        counts = self.weights(networks)[:, 0]
        outputs, inputs_of = population.sizes(layer)
        for member in members:
            rows, columns = int(outputs[member]), int(inputs_of[member])
            masks = population.masks[layer]
            kept_OI = pruned(
                population.weights[layer][member, :rows, :columns],
                None if masks is None else masks[member, :rows, :columns],
                int(counts[member]),
            )
            population.set_mask(layer, int(member), kept_OI)
