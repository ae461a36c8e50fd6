"""The search behind `allocate`: a knapsack of widths whose costs depend on each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dynopt_ray.structure import CostKind
from dynopt_ray.training.allocation.curves import Curve
from dynopt_ray.training.budgets import ROUNDING, Widths

# Less is rounding, and the next exchange might take it back.
_LEAST_GAIN = 1e-12


@dataclass(frozen=True, eq=False)
class Knapsack:
    """Widths to choose so that some costs stay within limits and the loss rises least.

    Attributes:
        curves: group name -> the increase of the loss by its width.
        limits: the largest value allowed of each cost.
        costs: what these costs come to at some widths; none falls as a width rises.
    """

    curves: Mapping[str, Curve]
    limits: Mapping[CostKind, float]
    costs: Callable[[Widths], Mapping[CostKind, float]]

    def solved(self, widths: Widths) -> dict[str, int]:
        """The best widths found from some that do not fit; the narrowest ones must."""
        # The last steps differ: with 1 the one that just suffices, with 0 the one worth most.
        return min((self._searched(self._cut(widths, least)) for least in (1, 0)), key=self.loss)

    def loss(self, widths: Widths) -> float:
        """The predicted increase of the loss."""
        return sum(curve(widths[name]) for name, curve in self.curves.items())

    def fits(self, widths: Widths) -> bool:
        """Whether all limits hold."""
        return _fits(self._used(widths))

    def _used(self, widths: Widths) -> list[float]:
        """The costs, each relative to its limit."""
        costs = self.costs(widths)
        return [costs[kind] / limit for kind, limit in self.limits.items()]

    def _searched(self, widths: Widths) -> dict[str, int]:
        best = self._filled(widths)
        while (better := self._exchanged(best)) is not None:
            best = self._filled(better)
        return best

    def _cut(self, widths: Widths, least: float) -> dict[str, int]:
        """Take the step that costs the least loss per cost saved, until everything fits.

        A step leads to any measured width, so that a steep piece of a curve does not hide a flat
        one behind it.

        Args:
            widths: the widths to start from.
            least: what is saved of a cost below this share of its limit does not count.
        """
        now = dict(widths)
        while not _fits(used := self._used(now)):
            steps = []
            for name, curve in self.curves.items():
                for width in curve.corners:
                    if width >= now[name]:
                        break
                    narrower = self._used({**now, name: width})
                    saved = sum(
                        max(a, least) - max(b, least) for a, b in zip(used, narrower, strict=True)
                    )
                    if saved > 0:
                        added_loss = curve(width) - curve(now[name])
                        steps.append((added_loss / saved, -saved, name, width))
            *_, name, width = min(steps)
            now[name] = width
        return now

    def _filled(self, widths: Widths) -> dict[str, int]:
        """Give back what fits, first what lowers the loss most per cost."""
        now = dict(widths)
        while True:
            total = sum(self._used(now))
            steps = []
            for name, curve in self.curves.items():
                for width in curve.next_to(now[name]):
                    if width > now[name] and _fits(used := self._used({**now, name: width})):
                        added = max(sum(used) - total, _LEAST_GAIN)
                        added_loss = curve(width) - curve(now[name])
                        steps.append((added_loss / added, added, name, width))
            if not steps:
                return now
            *_, name, width = min(steps)
            now[name] = width

    def _exchanged(self, widths: Widths) -> dict[str, int] | None:
        """One group wider and another narrower, with less loss; None if no pair has that."""
        for one, first in self.curves.items():
            for width in first.next_to(widths[one]):
                gain = first(widths[one]) - first(width) - _LEAST_GAIN
                for other, second in self.curves.items():
                    narrowest = second.narrowest(below=second(widths[other]) + gain)
                    if other == one or narrowest is None:
                        continue
                    exchanged = {**widths, one: width, other: narrowest}
                    if self.fits(exchanged):
                        return exchanged
        return None


def _fits(used: list[float]) -> bool:
    return all(share <= 1 + ROUNDING for share in used)
