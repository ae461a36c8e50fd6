"""Which networks of a search are kept: the best one, and those on the Pareto front."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def rank(utility: float, cost: float) -> tuple[float, float]:
    """Return the sort key of a trial: larger is better. Of equal utilities the cheaper wins."""
    return utility, -cost


@dataclass(frozen=True)
class _Kept:
    number: int
    accuracy: float
    score: float
    costs: tuple[float, ...]

    def beats(self, other: "_Kept") -> bool:
        """Whether it is at least as good in everything; of equal ones the earlier wins."""
        mine, theirs = (
            (one.accuracy, one.score, *(-cost for cost in one.costs)) for one in (self, other)
        )
        if mine == theirs:
            return self.number < other.number
        return all(a >= b for a, b in zip(mine, theirs, strict=True))


class KeptNetworks:
    """Decides whose networks are kept: no other finished trial is at least as good in everything.

    That is in accuracy, in the mean score of validation rows, and in costs. The trial with the
    highest utility is always among them.

    Args:
        forget: called with a trial whose network is no longer needed.
        costs: the figures that should be low. `cost` is always one of them.
    """

    def __init__(self, forget: Callable[[int], None], costs: Sequence[str] = ("cost",)) -> None:
        self._forget = forget
        self._costs = tuple(dict.fromkeys([*costs, "cost"]))
        self._kept: dict[int, _Kept] = {}

    def offer(
        self, number: int, row: Mapping[str, Any], scores: Sequence[float] | None = None
    ) -> bool:
        """Return whether to keep the network of a trial.

        Args:
            number: the trial.
            row: its final figures.
            scores: its scores of validation rows, if it gave them.
        """
        score = sum(scores) / len(scores) if scores else row["accuracy"]
        costs = tuple(float(row[name]) for name in self._costs)
        offered = _Kept(number, row["accuracy"], score, costs)
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

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._kept))
