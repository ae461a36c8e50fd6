"""Magnitude: large weights are important."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dynopt_ray.criteria.aggregate import Aggregate
from dynopt_ray.criteria.base import Evidence
from dynopt_ray.criteria.norms import check_norm, unit_norms


def magnitude(*, order: Literal[1, 2] = 2, aggregate: Aggregate = "sum") -> "Magnitude":
    """Weights score their absolute value, units the norm of all that they consist of.

    That is everything which would go with the unit: what makes it, with its bias, what
    normalises it and what reads it. Of these alone, what makes a unit tells least: with batch
    normalisation its size has no effect at all, and a unit that nobody reads is useless
    however large it is.

    Args:
        order: 1 sums absolute values over a unit, 2 takes the root of the sum of squares.
        aggregate: whether what the unit has in different parameters is summed (before the
            root), or the mean or the largest of these sums counts.

    Raises:
        ValueError: another order.
        UnknownNameError: another aggregate.

    References:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets", takes only what makes a unit.
    """
    return Magnitude(order, aggregate)


@dataclass(frozen=True)
class Magnitude:
    """See `magnitude`."""

    order: int
    aggregate: Aggregate = "sum"

    def __post_init__(self) -> None:
        check_norm("magnitude", self.order, self.aggregate)

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """The norm of all weights of a unit."""
        return unit_norms(evidence.graph, evidence.parameters, self.order, self.aggregate)

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """|w|."""
        return {name: weight.abs() for name, weight in evidence.weights.items()}
