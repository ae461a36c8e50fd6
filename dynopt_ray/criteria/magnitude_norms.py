"""Magnitude criterion: large weights are important."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dynopt_ray.criteria.aggregate import Aggregate
from dynopt_ray.criteria.base import Evidence
from dynopt_ray.criteria.norms import check_norm, unit_norms


def magnitude(*, order: Literal[1, 2] = 2, aggregate: Aggregate = "sum") -> "Magnitude":
    """Score weights by their absolute value, units by the norm of all their weights.

    The weights of a unit are all weights that would be removed with it: those that produce it
    (with its bias), normalise it and read it. The producing weights alone would say least. If
    batch normalisation follows, their size has no effect at all, and a unit that nothing reads
    is useless however large its producing weights are.

    Args:
        order: 1 for the sum of absolute values over a unit, 2 for the root of the sum of squares.
        aggregate: how a unit's sums over different parameters are combined (before the root):
            their sum, their mean or their maximum.

    Raises:
        ValueError: `order` is not 1 or 2.
        UnknownNameError: `aggregate` is unknown.

    References:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets". They use only the weights that
        produce a unit.
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
        """|w| of each weight."""
        return {name: weight.abs() for name, weight in evidence.weights.items()}
