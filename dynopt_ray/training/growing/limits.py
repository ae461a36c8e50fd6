"""Limits of growth: the widths that a network may have after each round."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dynopt_ray.errors import BudgetError, EditError
from dynopt_ray.structure import Graph, Grow
from dynopt_ray.training.budgets import (
    Budget,
    Widths,
    fractions_hint,
    is_nonzero,
    measured_choices,
    share_of,
)
from dynopt_ray.training.loop import CostAndMetrics, Costs

Worth = Callable[[tuple[str, ...]], Mapping[str, float]]
"""Group names -> (group name -> worth of its next unit, >= 0, on any common scale)."""

_BISECTIONS = 40
_NUM_PARTS = 8
_MOST_TIMES = 2**10


@dataclass(frozen=True, eq=False)
class Growth:
    """The data that all rounds of one `grow` share.

    Attributes:
        graph: the traced network.
        costs: the costs of the network.
        start: the network before the first round.
        target: a budget, or group name -> final width.
    """

    graph: Graph
    costs: Costs
    start: CostAndMetrics
    target: Budget | Widths

    def __post_init__(self) -> None:
        """Refuse a budget that cannot be met or leaves no room for growth.

        Raises:
            EditError: no group can grow, or none has room for a further unit.
            BudgetError: the network already exceeds the budget, or its cost hardly depends on the
                widths.
        """
        if isinstance(self.target, Budget) and self.evenly(1.0) == self.start.widths:
            raise EditError(
                f"{self.target!r} adds nothing: no group has room for another unit. Raise it"
            )

    def corrected(self, choose: Callable[[], dict[str, int]], share: float) -> dict[str, int]:
        """Return the widths that `choose` gives, measured first if the budget limits the latency.

        Each measurement corrects the latency model for the next choice. The widest choice measured
        within the limit is returned; if there is none, the network keeps its widths.

        Args:
            choose: gives the widths by the latency model as it is at that moment.
            share: fraction of the way to the target, in (0, 1].
        """
        if not (isinstance(self.target, Budget) and self.target.latency_ms is not None):
            return choose()
        limit = self.target.limits(self.start.cost, share)["latency_ms"]
        best, too_slow = self.graph.widths, dict[str, int]()

        def untried() -> dict[str, int] | None:
            widths = {name: min(w, too_slow.get(name, w)) for name, w in choose().items()}
            return widths if self._grown(widths) and widths not in (best, too_slow) else None

        def latency_ms(widths: dict[str, int]) -> float:
            return self.costs.latency_ms_after(self._grown(widths))

        for widths, measured_ms in measured_choices(untried, latency_ms):
            if measured_ms > limit:
                too_slow = widths
            elif sum(widths.values()) > sum(best.values()):
                best = widths
        return best

    def _grown(self, widths: Widths) -> list[Grow]:
        """Return the plan that grows each group to its given width, if it is narrower."""
        added = {name: width - self.graph[name].width for name, width in widths.items()}
        return [Grow(name, units=units) for name, units in added.items() if units > 0]

    def evenly(self, share: float) -> dict[str, int]:
        """Return the widths at a fraction of the way to the target, for even growth.

        Args:
            share: fraction of the way to the target, in (0, 1].
        """
        if isinstance(self.target, Budget):
            return self._widest(self.target, share)
        return {
            name: width + self._share(name, self.target.get(name, width) - width, share)
            for name, width in self.start.widths.items()
        }

    def by_worth(self, share: float, worth: Worth) -> dict[str, int]:
        """Return the widths at a fraction of the way to a budget, for growth where it pays most.

        Units are added where they are worth most for their cost. What a group lacks is assumed to
        be inversely proportional to its width, so the worth of a further unit falls with the square
        of the width: to a quarter when the group has doubled. Therefore no single group gets the
        whole budget. The worth is determined again in each round.

        Args:
            share: fraction of the way to the budget, in (0, 1].
            worth: gives the present worth of units.
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
        """Return the worth of the next units of a group, divided by their relative cost."""
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
                f"grow: {self.target!r} has room for more than {_MOST_TIMES} times the widths: the "
                "cost, as measured, hardly depends on them. Limit another cost, such as params"
            )

    def _few(self, name: str, width: int) -> int:
        """Return an eighth of a width in whole steps of its group, at least one step."""
        step = self.graph[name].step
        return max(1, width // _NUM_PARTS // step) * step

    def _share(self, name: str, units: int, share: float) -> int:
        """Return the largest multiple of a group's step that is at most a fraction of `units`."""
        return share_of(units, share, step=self.graph[name].step)

    def _able(self) -> list[str]:
        able = [group.name for group in self.graph if group.exact_growth]
        if not able:
            raise EditError(f"no group of {self.graph!r} can grow without changing the output")
        return able

    def _fits(self, budget: Budget, share: float) -> Callable[[Widths], bool]:
        """Return a function that tells whether widths are within a share of the way to a budget."""
        limits, start = budget.limits(self.start.cost, share), self.start
        held = [is_nonzero(p, lasting=True) for p in self.graph.model.parameters()]
        num_masked = sum(int((~keep).sum()) for keep in held)

        def fits(widths: Widths) -> bool:
            cost = self.costs.at(widths)
            # Training fills all zeros, old and new, except masked ones.
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
        """Return the widths of the largest even growth within a budget, found by bisection."""
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
        # Groups of equal width gain a unit at the same fraction; some may fit though all do not.
        for name in sorted(able, key=lambda name: widths[name] / start[name]):
            if fits(wider := {**widths, name: widths[name] + self.graph[name].step}):
                widths = wider
        return widths
