"""Magnitude: large weights are important."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dynopt_ray.criteria.aggregate import sum_over_units
from dynopt_ray.criteria.base import Evidence
from dynopt_ray.structure.record import Role

_ORDERS = (1, 2)
_ALL: tuple[Role, ...] = ("out", "scale", "in")


def magnitude(*, order: Literal[1, 2] = 2) -> "Magnitude":
    """Weights score their absolute value, units the norm of all that they consist of.

    That is everything which would go with the unit: what makes it, with its bias, what
    normalises it and what reads it. Of these alone, what makes a unit tells least: with batch
    normalisation its size has no effect at all, and a unit that nobody reads is useless
    however large it is.

    Args:
        order: 1 sums absolute values over a unit, 2 takes the root of the sum of squares.

    Raises:
        ValueError: another order.

    References:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets", takes only what makes a unit.
    """
    return Magnitude(order)


@dataclass(frozen=True)
class Magnitude:
    """See `magnitude`."""

    order: int

    def __post_init__(self) -> None:
        if self.order not in _ORDERS:
            raise ValueError(f"magnitude: order is {self.order!r}; it must be 1 or 2")

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """The norm of all weights of a unit."""
        powers = {
            name: parameter.abs() if self.order == 1 else parameter.square()
            for name, parameter in evidence.parameters.items()
        }
        sums = {group.name: sum_over_units(group, powers, roles=_ALL) for group in evidence.graph}
        return {name: s if self.order == 1 else s.sqrt() for name, s in sums.items()}

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """|w|."""
        return {name: weight.abs() for name, weight in evidence.weights.items()}
