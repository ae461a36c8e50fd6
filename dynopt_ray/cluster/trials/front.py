"""Which networks of a search are kept: the best one, and those on the Pareto front."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def rank(utility: float, cost: float) -> tuple[float, float]:
    """Return the sort key of a trial: larger is better. Of equal utilities the cheaper wins."""
    return utility, -cost


@dataclass(frozen=True)
class _Kept:
    number: int
    accuracy: float
    cost: float
    utility: float

    def beats(self, other: "_Kept") -> bool:
        """Whether it is at least as good in accuracy and cost; of equal ones the earlier wins."""
        if (self.accuracy, self.cost) == (other.accuracy, other.cost):
            return self.number < other.number
        return self.accuracy >= other.accuracy and self.cost <= other.cost


class KeptNetworks:
    """Decides whose networks are kept: no other finished trial is better in accuracy and cost.

    The trial with the highest utility is always among them.

    Args:
        forget: called with a trial whose network is no longer needed.
    """

    def __init__(self, forget: Callable[[int], None]) -> None:
        self._forget = forget
        self._kept: dict[int, _Kept] = {}

    def offer(self, number: int, row: Mapping[str, Any]) -> bool:
        """Return whether to keep the network of a trial with these final figures."""
        offered = _Kept(number, row["accuracy"], row["cost"], row["utility"])
        if any(one.beats(offered) for one in self._kept.values()):
            return False
        for one in [*self._kept.values()]:
            if offered.beats(one):
                del self._kept[one.number]
                self._forget(one.number)
        self._kept[number] = offered
        return True

    def __contains__(self, number: int) -> bool:
        return number in self._kept

    def __iter__(self) -> Any:
        return iter(sorted(self._kept))
