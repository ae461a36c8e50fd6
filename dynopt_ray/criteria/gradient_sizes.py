"""Gradient: what the loss is sensitive to is important."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dynopt_ray.criteria.aggregate import Aggregate
from dynopt_ray.criteria.base import Evidence
from dynopt_ray.criteria.norms import check_norm, unit_norms


def gradient(*, order: Literal[1, 2] = 2, aggregate: Aggregate = "sum") -> "Gradient":
    """Weights score the size of their gradient, units the norm of that of all their weights.

    The gradient is that of the mean loss over all samples. It tells what training would move
    first, not what can be missed (`taylor` does), and near a minimum it is mostly noise; it is
    here because the article prunes by it.

    Args:
        order: 1 sums absolute values over a unit, 2 takes the root of the sum of squares.
        aggregate: how parameters count that the unit has a part in; see `magnitude`.

    Raises:
        ValueError: another order.
        UnknownNameError: another aggregate.
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
        """|g|."""
        return {name: evidence.gradients[name].abs() for name in evidence.weights}
