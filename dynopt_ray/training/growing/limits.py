"""Where a network grows: the widths after each round."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dynopt_ray.errors import BudgetError, EditError
from dynopt_ray.structure import Graph, Grow
from dynopt_ray.training.budgets import Budget, Widths, fractions_hint, is_nonzero, share_of
from dynopt_ray.training.loop import CostAndMetrics, Costs

Worth = Callable[[tuple[str, ...]], Mapping[str, float]]
"""Group names -> what the next unit of each would be worth, >= 0; any scale."""

_BISECTIONS = 40
_NUM_PARTS = 8
_MOST_TIMES = 2**10
# How often a choice by a latency model is measured and made again.
_CORRECTIONS = 5


@dataclass(frozen=True, eq=False)
class Growth:
    """What all rounds of one growth share.

    Attributes:
        graph: the traced network.
        costs: what it costs.
        start: the network before the first round.
        target: a budget, or the widths that groups shall have.
    """

    graph: Graph
    costs: Costs
    start: CostAndMetrics
    target: Budget | Widths

    def __post_init__(self) -> None:
        """Refuse a budget that asks for nothing or for what cannot be.

        Raises:
            EditError: that.
            BudgetError: the network is not below its budget.
        """
        if isinstance(self.target, Budget) and self.evenly(1.0) == self.start.widths:
            raise EditError(
                f"{self.target!r} adds nothing: no group has room for a unit more. Raise it"
            )

    def corrected(self, choose: Callable[[], dict[str, int]], share: float) -> dict[str, int]:
        """The widest choice that a latency budget has room for, measured; others as they are.

        Each measurement corrects the model of the latency, by which the next choice is made. If
        none of them is within the budget, the network keeps its widths.

        Args:
            choose: gives the widths, by the model as it is then.
            share: how much of the way to the target.
        """
        if not (isinstance(self.target, Budget) and self.target.latency_ms is not None):
            return choose()
        limit = self.target.limits(self.start.cost, share)["latency_ms"]
        now = self.graph.widths
        best, too_slow = now, dict[str, int]()
        for _ in range(_CORRECTIONS):
            chosen = {name: min(w, too_slow.get(name, w)) for name, w in choose().items()}
            added = {name: width - now[name] for name, width in chosen.items()}
            plan = [Grow(name, units=units) for name, units in added.items() if units > 0]
            if not plan or chosen in (best, too_slow):
                break
            if self.costs.latency_ms_after(plan) > limit:
                too_slow = chosen
            elif sum(chosen.values()) > sum(best.values()):
                best = chosen
        return best

    def evenly(self, share: float) -> dict[str, int]:
        """The widths a share of the way to the target, all groups by the same fraction."""
        if isinstance(self.target, Budget):
            return self._widest(self.target, share)
        return {
            name: width + self._share(name, self.target.get(name, width) - width, share)
            for name, width in self.start.widths.items()
        }

    def by_worth(self, share: float, worth: Worth) -> dict[str, int]:
        """The widths a share of the way to a budget, where a unit is worth most for its cost.

        What a group lacks is taken to fall in proportion to its width, so that a further unit of
        a group of twice its present width is worth a quarter. No group gets all, therefore, and
        worth is asked anew in each round.

        Args:
            share: in (0, 1].
            worth: what units are worth now.
        """
        assert isinstance(self.target, Budget)
        fits = self._fits(self.target, share)
        now = self.graph.widths
        able = self._able()
        value = worth(tuple(able))
        widths, left = dict(now), set(able)
        while left:
            rates = {name: self._rate(name, widths, now, value[name]) for name in left}
            best = max(sorted(left), key=rates.__getitem__)
            wider = {**widths, best: widths[best] + self._few(best, widths[best])}
            if not fits(wider):
                wider = {**widths, best: widths[best] + self.graph[best].step}
            if fits(wider):
                widths = wider
                self._check_sane(widths[best] / now[best])
            else:
                left.remove(best)
        return widths

    def _rate(self, name: str, widths: Widths, now: Widths, value: float) -> float:
        """What the next units are worth for what they cost."""
        assert isinstance(self.target, Budget)
        few = self._few(name, widths[name])
        before = self.costs.at(widths)
        after = self.costs.at({**widths, name: widths[name] + few})
        # Non-zero weights and latency follow the parameters closely enough to compare groups.
        kinds = {"nonzero": "params", "latency_ms": "flops"}
        share: float = max(
            (getattr(after, kind) - getattr(before, kind)) / getattr(before, kind)
            for kind in (kinds.get(kind, kind) for kind in self.target.kinds)
        )
        return few * value * (now[name] / widths[name]) ** 2 / max(share, 1e-12)

    def _check_sane(self, times: float) -> None:
        if times > _MOST_TIMES:
            raise BudgetError(
                f"grow: {self.target!r} has room for more than {_MOST_TIMES} times the widths: as "
                "far as it was measured, the cost hardly depends on them. Limit another one, such "
                "as params"
            )

    def _few(self, name: str, width: int) -> int:
        """An eighth of a group, in whole steps."""
        step = self.graph[name].step
        return max(1, width // _NUM_PARTS // step) * step

    def _share(self, name: str, units: int, share: float) -> int:
        """The most units that a group can grow by, no more than a share of some."""
        return share_of(units, share, step=self.graph[name].step)

    def _able(self) -> list[str]:
        able = [group.name for group in self.graph if group.exact_growth]
        if not able:
            raise EditError(f"no group of {self.graph!r} can grow without changing the output")
        return able

    def _fits(self, budget: Budget, share: float) -> Callable[[Widths], bool]:
        """Whether widths are within a share of the way to a budget."""
        limits, start = budget.limits(self.start.cost, share), self.start
        held = [is_nonzero(p, lasting=True) for p in self.graph.model.parameters()]
        num_masked = sum(int((~keep).sum()) for keep in held)

        def fits(widths: Widths) -> bool:
            cost = self.costs.at(widths)
            # Training fills zeros, new and old, but those that a mask holds.
            nonzero = cost.params - num_masked
            latency_ms = self.costs.latency_ms_at(widths) if "latency_ms" in limits else None
            cost = replace(cost, nonzero=nonzero, latency_ms=latency_ms)
            return all(getattr(cost, kind) <= limit for kind, limit in limits.items())

        if not fits(start.widths):
            raise BudgetError(
                f"grow: {budget!r} is below what the network costs: {start.cost}"
                + fractions_hint(budget)
            )
        return fits

    def _widest(self, budget: Budget, share: float) -> dict[str, int]:
        """The largest even growth within a budget, found by bisection on its fraction."""
        able, fits, start = self._able(), self._fits(budget, share), self.start.widths

        def grown(fraction: float) -> dict[str, int]:
            added = {name: self._share(name, start[name], fraction) for name in able}
            return {name: width + added.get(name, 0) for name, width in start.items()}

        low, high = 0.0, 1.0
        while fits(grown(high)):
            low, high = high, 2 * high
            self._check_sane(high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(grown(middle)) else (low, middle)
        widths = grown(low)
        # Groups of equal width step at the same fraction, all or none; some may still fit.
        for name in sorted(able, key=lambda name: widths[name] / start[name]):
            if fits(wider := {**widths, name: widths[name] + self.graph[name].step}):
                widths = wider
        return widths
