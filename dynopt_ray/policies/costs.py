"""What utilities charge for: one kind of cost, or a mixture of several."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Union, get_args

import numpy as np

from dynopt_ray.arrays import FloatArray
from dynopt_ray.errors import UnknownNameError
from dynopt_ray.structure import Cost

ChargedCost = Literal["params", "nonzero", "flops", "bytes"]
"""The costs that a utility can charge for: attributes of `structure.Cost`."""

CHARGED_COSTS: tuple[ChargedCost, ...] = get_args(ChargedCost)

CostConfig = Union[ChargedCost, Mapping[ChargedCost, float], "CostMixture"]
"""A kind of cost, or several with their weights, of which only the ratios matter."""


@dataclass(frozen=True)
class CostMixture:
    """A weighted mean of costs, each relative to the start.

    Args:
        weights: one weight for each of `CHARGED_COSTS`; they add up to 1.

    Example:
        >>> CostMixture.of({"flops": 3, "nonzero": 1}).weights
        (0.0, 0.25, 0.75, 0.0)
    """

    weights: tuple[float, ...]

    @classmethod
    def of(cls, cost: CostConfig) -> "CostMixture":
        """Return the mixture that a kind of cost, or a mapping of kinds to weights, describes.

        Raises:
            TypeError: it is neither, or a weight is not a number.
            UnknownNameError: utility cannot charge for such a cost.
            ValueError: a weight is negative or not finite, or none is above 0.
        """
        if isinstance(cost, CostMixture):
            return cost
        if not isinstance(cost, str | Mapping):
            raise TypeError(f"cost is {cost!r}; pass a name or {{'flops': 0.5, 'nonzero': 0.5}}")
        given = dict(cost) if isinstance(cost, Mapping) else {cost: 1.0}
        for kind in given:
            if kind not in CHARGED_COSTS:
                raise UnknownNameError("cost", str(kind), CHARGED_COSTS)
        if any(isinstance(w, bool) or not isinstance(w, int | float) for w in given.values()):
            raise TypeError(f"cost is {cost}; its weights must be numbers")
        weights = [float(given.get(kind, 0.0)) for kind in CHARGED_COSTS]
        total = sum(weights)
        if not all(weight >= 0 for weight in weights) or not 0 < total < math.inf:
            raise ValueError(
                f"cost is {cost}; its weights must be finite numbers of at least 0, and one of "
                "them above 0"
            )
        return cls(tuple(weight / total for weight in weights))

    def of_each(self, relative: FloatArray) -> FloatArray:
        """Return the mixture of N networks' relative costs (N, kinds) as (N,)."""
        return np.asarray(relative @ np.array(self.weights))

    def relative(self, cost: Cost, start: Cost) -> float:
        """Return the mixture of a cost, relative to that at the start."""
        return float(self.mean(partial(cost.relative_to, start)))

    def mean(self, of: Callable[[ChargedCost], Any]) -> Any:
        """Return the weighted mean of a figure: kind of cost -> number, array or column."""
        return sum(weight * of(kind) for kind, weight in self._used.items())

    @property
    def kinds(self) -> tuple[ChargedCost, ...]:
        """The kinds of cost that are charged for."""
        return tuple(self._used)

    def __str__(self) -> str:
        used = self._used.items()
        return " + ".join(kind if weight == 1 else f"{weight:.3g} {kind}" for kind, weight in used)

    @property
    def _used(self) -> dict[ChargedCost, float]:
        return {k: w for k, w in zip(CHARGED_COSTS, self.weights, strict=True) if w}


DEFAULT_COST = CostMixture.of({"flops": 0.5, "nonzero": 0.5})
"""FLOPs fall with the widths of a network, non-zero weights also with masks, which save no time."""
