"""The search behind `allocate`: a knapsack over widths whose costs depend on each other.

Minimise the sum of the groups' loss curves over all widths that keep every cost within its limit.
The curves never rise with a width, and the costs never fall. The cost of one group depends on the
widths of its neighbours, so the dynamic programs for ordinary knapsacks do not apply; this is a
local search. Every cost is taken relative to its limit, so that several limits can be added up.

1. Cut: narrow groups, each time by the step that adds the least loss per cost saved, until
   everything fits. This ends, because every step narrows a group and the narrowest widths fit.
2. Fill: widen groups while they fit, each time by the step that lowers the loss most per cost.
3. Exchange: set one group to another width, and a second group to the narrowest width at which the
   total loss still falls. The narrowest is the cheapest: if it does not fit, no wider one does, so
   no other width of the second group has to be tried. Fill again after each exchange. This ends,
   because every exchange lowers the loss and there are finitely many widths.

The result fits, and no single widening and no exchange of this kind improves it. It need not be the
optimum. The whole search runs twice, because the last step of the cut can be judged in two ways. If
savings below a limit do not count, it is a step that just suffices; if they count, it is the step
that saves most for its loss. The better result is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dynopt_ray.errors import BudgetError
from dynopt_ray.structure import CostKind
from dynopt_ray.training.allocation.curves import Curve
from dynopt_ray.training.budgets import ROUNDING, Widths

# Smaller gains are rounding errors, which the next exchange might reverse for ever.
_LEAST_GAIN = 1e-12


@dataclass(frozen=True, eq=False)
class Knapsack:
    """The problem of choosing widths that keep costs within limits at the least loss.

    Attributes:
        curves: group name -> its curve: width -> increase of the loss.
        limits: kind of cost -> its largest allowed value.
        costs: widths -> value of each limited cost. No cost falls when a width rises.
    """

    curves: Mapping[str, Curve]
    limits: Mapping[CostKind, float]
    costs: Callable[[Widths], Mapping[CostKind, float]]

    def solved(self, widths: Widths) -> dict[str, int]:
        """Return the best widths found, starting from `widths`. The narrowest widths must fit."""
        # With 1 the last step of the cut is one that just suffices, with 0 the one that saves
        # most for its loss.
        return min((self._searched(self._cut(widths, least)) for least in (1, 0)), key=self.loss)

    def loss(self, widths: Widths) -> float:
        """Return the predicted increase of the loss at some widths."""
        return sum(curve(widths[name]) for name, curve in self.curves.items())

    def fits(self, widths: Widths) -> bool:
        """Return whether all limits hold at some widths."""
        return _fits(self._used(widths))

    def _used(self, widths: Widths) -> list[float]:
        """Return the costs, each relative to its limit."""
        costs = self.costs(widths)
        return [costs[kind] / limit for kind, limit in self.limits.items()]

    def _searched(self, widths: Widths) -> dict[str, int]:
        best = self._filled(widths)
        while (better := self._exchanged(best)) is not None:
            best = self._filled(better)
        return best

    def _cut(self, widths: Widths, least: float) -> dict[str, int]:
        """Narrow groups by the step that adds the least loss per cost saved, until all fits.

        A step may lead to any measured width, and not only to the next one. Otherwise a steep piece
        of a curve would hide a flat piece behind it.

        Args:
            widths: the widths to start from.
            least: savings of a cost count only down to this fraction of its limit.

        Raises:
            BudgetError: a limit is exceeded, but no step lowers its cost.
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
            if not steps:
                over = {k: round(s, 4) for k, s in zip(self.limits, used, strict=True) if s > 1}
                raise BudgetError(
                    f"allocate: no narrower width lowers {', '.join(over)}, which at widths {now} "
                    f"is still {over} times its limit: a predicted cost does not fall with the "
                    "widths. Allow more, or leave this limit out"
                )
            *_, name, width = min(steps)
            now[name] = width
        return now

    def _filled(self, widths: Widths) -> dict[str, int]:
        """Widen groups by the step that lowers the loss most per cost added, while it fits."""
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
        """Widen one group and narrow another so that the loss falls and all fits; None if no pair.

        The first group may be either of them.
        """
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
