"""Gradient criterion: a weight to which the loss is sensitive is important."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dynopt_ray.criteria.aggregate import Aggregate
from dynopt_ray.criteria.base import Evidence
from dynopt_ray.criteria.norms import check_norm, unit_norms


def gradient(*, order: Literal[1, 2] = 2, aggregate: Aggregate = "sum") -> "Gradient":
    """Score weights by the size of their gradient, units by the norm of all their gradients.

    The gradient is that of the mean loss over all samples. It shows which weights training would
    change first, not which weights can be removed (`taylor` estimates that). Near a minimum it
    is mostly noise. It is included because the source article prunes by it ("Dynamic
    optimisation of neural networks: pruning, learning-rate schedules, dynamic structure, online
    learning").

    Args:
        order: 1 for the sum of absolute values over a unit, 2 for the root of the sum of squares.
        aggregate: how a unit's values in different parameters are combined; see `magnitude`.

    Raises:
        ValueError: `order` is not 1 or 2.
        UnknownNameError: `aggregate` is unknown.
    """
    return Gradient(order, aggregate)


@dataclass(frozen=True)
class Gradient:
    """See `gradient`."""

    order: int
    aggregate: Aggregate = "sum"

    def __post_init__(self) -> None:
        check_norm("gradient", self.order, self.aggregate)

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """The norm of the gradient of all weights of a unit."""
        return unit_norms(evidence.graph, evidence.gradients, self.order, self.aggregate)

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """|g| of each weight."""
        return {name: evidence.gradients[name].abs() for name in evidence.weights}
