"""The cost that a utility charges for: one cost of a network, or a mixture of several."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

from dynopt_ray.errors import UnknownNameError
from dynopt_ray.policies.utilities import CHARGED_COSTS, ChargedCost
from dynopt_ray.structure import Cost

CostSpec = Union[ChargedCost, Mapping[ChargedCost, float], "CostMixture"]
"""A cost's name, or a mapping such as {"flops": 0.5, "nonzero": 0.5}."""

_ROUNDING = 1e-6


@dataclass(frozen=True)
class CostMixture:
    """A weighted sum of relative costs. That of the network at the start is 1.

    Attributes:
        shares: (cost, weight) for each cost that is charged for; the weights add up to 1.

    Raises:
        UnknownNameError: utility cannot charge for one of the costs.
        ValueError: a weight is not above 0, or they do not add up to 1.

    Example:
        >>> mixture = CostMixture.of({"flops": 0.5, "nonzero": 0.5})
        >>> start, now = Cost(10, 10, 100, 40), Cost(5, 4, 50, 20)
        >>> mixture.relative(now, start)
        0.45
    """

    shares: tuple[tuple[ChargedCost, float], ...]

    def __post_init__(self) -> None:
        if not self.shares:
            raise ValueError(f"cost is empty; name at least one of {', '.join(CHARGED_COSTS)}")
        for kind, weight in self.shares:
            if kind not in CHARGED_COSTS:
                raise UnknownNameError("cost", str(kind), CHARGED_COSTS)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
                raise ValueError(
                    f"cost: the weight of {kind} is {weight!r}; it must be a number above 0"
                )
        total = math.fsum(weight for _, weight in self.shares)
        if not math.isclose(total, 1.0, abs_tol=_ROUNDING):
            raise ValueError(
                f"cost: the weights of {', '.join(self.kinds)} add up to {total:g}; they must add "
                "up to 1, so that the whole cost at the start has the price λ"
            )

    @classmethod
    def of(cls, cost: CostSpec) -> "CostMixture":
        """Return the mixture that a name or a mapping describes.

        Raises:
            TypeError: it is neither.
            UnknownNameError: utility cannot charge for one of the costs.
            ValueError: a weight is not above 0, or they do not add up to 1.
        """
        if isinstance(cost, CostMixture):
            return cost
        if isinstance(cost, str):
            return cls(((cost, 1.0),))
        if not isinstance(cost, Mapping):
            raise TypeError(f"cost is {cost!r}; pass a name or {{'flops': 0.5, 'nonzero': 0.5}}")
        return cls(tuple(cost.items()))

    @property
    def kinds(self) -> tuple[ChargedCost, ...]:
        """The costs that are charged for."""
        return tuple(kind for kind, _ in self.shares)

    def relative(self, cost: Cost, start: Cost) -> float:
        """Return the weighted sum of the costs, each relative to that at the start."""
        return math.fsum(weight * cost.relative_to(start, kind) for kind, weight in self.shares)

    def __str__(self) -> str:
        """A name, or a sum such as 0.5 flops + 0.5 nonzero."""
        if len(self.shares) == 1:
            return self.kinds[0]
        return " + ".join(f"{weight:g} {kind}" for kind, weight in self.shares)


DEFAULT_COST = CostMixture((("flops", 0.5), ("nonzero", 0.5)))
"""Half FLOPs, half non-zero weights. With non-zero weights alone, masks win that save no time."""
