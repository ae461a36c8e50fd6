"""The action that masks weights everywhere at once."""

from dataclasses import dataclass

import numpy as np

from dynopt_ray.arrays import BoolArray, IntArray
from dynopt_ray.policies.actions.amounts import check_fraction
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.evidence import GraphEvidence, StackEvidence
from dynopt_ray.policies.unit_scores import maskable_weights, pruned
from dynopt_ray.population import Population, mask_marked
from dynopt_ray.structure import CostKind, Edit, Graph, Mask, mask_of


@dataclass(frozen=True)
class PruneNetwork:
    """Mask the smallest weights of the whole network, and refit the others.

    Attributes:
        left: weights to leave, as a fraction of those that can be masked now, in (0, 1). Each
            parameter keeps one weight in any case.
        label: the action's name in tables and messages; by default it names the fraction.

    Raises:
        ValueError: the fraction is out of its range.
    """

    left: float = 0.5
    label: str = ""
    ends = False
    whole = True
    lowers: frozenset[CostKind] = frozenset({"nonzero"})

    def __post_init__(self) -> None:
        check_fraction("prune_network", self.left, whole=False, name="left")
        if not self.label:
            object.__setattr__(self, "label", f"prune network to {self.left:g}")

    def weights(self, networks: Descriptors) -> IntArray:
        """Return how many weights to mask, (N,)."""
        return np.asarray(np.floor((1 - self.left) * networks.num_spare).astype(np.int64))

    def legal(self, networks: Descriptors) -> BoolArray:
        """Return which networks have a weight that can be masked, (N,)."""
        return self.weights(networks) > 0

    def plan(self, graph: Graph, network: Descriptors, evidence: GraphEvidence) -> list[Edit]:  # noqa: ARG002
        """Return the edits that mask weights in all parameters that lose some."""
        weights = maskable_weights(graph)
        before = [mask_of(weight) for weight in weights.values()]
        after = pruned([*weights.values()], before, int(self.weights(network)[0]))
        return [
            Mask(name, keep=keep)
            for name, keep, old in zip(weights, after, before, strict=True)
            if not bool(keep.all() if old is None else (keep == old).all())
        ]

    def apply_stacked(
        self,
        population: Population,
        members: IntArray,
        networks: Descriptors,
        evidence: StackEvidence,
    ) -> None:
        """Mask weights in all layers of each of the members."""
        counts = self.weights(networks)
        layers = range(population.num_layers)
        places = population.places(members)
        keeps = {layer: population.mask(layer)[places] for layer in layers}
        for place, member in enumerate(members):
            sizes = [
                tuple(slice(int(n[member])) for n in population.sizes(layer)) for layer in layers
            ]
            weights = [population.weights[layer][member][sizes[layer]] for layer in layers]
            before = [keeps[layer][place][sizes[layer]] for layer in layers]
            for layer, keep in enumerate(pruned(weights, before, int(counts[member]))):
                keeps[layer][place][sizes[layer]] = keep
        mask_marked(population, members, keeps, compensate_NI=evidence.x)
