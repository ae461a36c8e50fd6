"""What actions know about networks in one state, apart from descriptors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from dynopt_ray.arrays import FloatArray
from dynopt_ray.criteria import Batch, Loss, reconstruction, unit_scores
from dynopt_ray.population import Population, unit_errors
from dynopt_ray.structure import Graph, Inputs

# Enough for cuts that are followed by training, and a quarter of the time of the criterion's own.
_MOST_STEPS = 16


@dataclass(frozen=True, eq=False)
class GraphEvidence:
    """Training rows for a real network, and the scores of its units in its present state.

    Attributes:
        graph: the network.
        batches: training rows and their targets, in batches.
        loss: the loss that the network minimises.
    """

    graph: Graph
    batches: Sequence[Batch]
    loss: Loss

    @property
    def inputs(self) -> list[Inputs]:
        """The training rows without their targets, for refits."""
        return [inputs for inputs, _ in self.batches]

    @cached_property
    def unit_scores(self) -> list[FloatArray]:
        """The scores of each group's units by `reconstruction`, comparable across groups.

        Raises:
            CriterionError: a group is read by nothing whose inputs can be observed.
        """
        criterion = reconstruction(most_steps=_MOST_STEPS)
        scores = unit_scores(self.graph, criterion, self.batches, loss=self.loss)
        return [scores[group.name].cpu().numpy() for group in self.graph.groups]


@dataclass(frozen=True, eq=False)
class StackEvidence:
    """Training rows for stacked networks, and the scores of their units in their present state.

    Attributes:
        population: the networks.
        x: training rows, (rows, features); (members, rows, features) if each has its own.
        y: their classes, (rows,); (members, rows) if each has its own.
    """

    population: Population
    x: Tensor
    y: Tensor

    @cached_property
    def unit_scores(self) -> list[FloatArray]:
        """The same for each hidden layer, (members, units); infinite at padding."""
        scores = unit_errors(self.population, self.x, self.y, most_steps=_MOST_STEPS)
        return [score.cpu().numpy() for score in scores]
