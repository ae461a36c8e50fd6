"""Cuts that are tried, measured and undone before one of them is made."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from dynopt_ray.criteria import CriterionLike
from dynopt_ray.policies.costs import CostMixture
from dynopt_ray.policies.cuts.targets import WholeCut
from dynopt_ray.policies.utilities import utility
from dynopt_ray.structure import Edit, Graph, Inputs
from dynopt_ray.tasks import Task
from dynopt_ray.training import CostAndMetrics, Costs, cost_and_metrics, plan_cuts, undone

Plans = tuple[list[Edit], ...]
"""Plans to apply one after the other, each with compensation."""

CutPlanner = Callable[..., list[list[Edit] | None]]
"""`plan_cuts` for one network and criterion."""


@dataclass(frozen=True, eq=False)
class CutCandidate:
    """A cut, and the network right after it, before any training.

    Attributes:
        cut: how far it goes.
        plans: the plans that carry it out; none if nothing is removed.
        after: cost and validation metrics of the network right after the cut.
        relative_cost: its cost, relative to that of the network before.
        smooth_utility: its smooth metric on validation data − λ · relative cost.
        duration_s: seconds to cut, compensate and measure; a cut of units that several candidates
            share counts for the first of them.
    """

    cut: WholeCut
    plans: Plans
    after: CostAndMetrics
    relative_cost: float
    smooth_utility: float
    duration_s: float


@dataclass(frozen=True, eq=False)
class Cutting:
    """A network that is about to be cut; what policies that cut choose from.

    Attributes:
        graph: the traced network.
        task: what it has learned.
        costs: its costs.
        start: the network before the cut.
        cost: the cost that utility charges for.
        cost_weight: λ, the price of the whole cost at the start in units of the metric.
        calibration: batches of inputs that each cut is compensated with.
        generator: for random choices, such as of the rows that scores are computed from.
    """

    graph: Graph
    task: Task
    costs: Costs
    start: CostAndMetrics
    cost: CostMixture
    cost_weight: float
    calibration: Sequence[Inputs]
    generator: torch.Generator

    def candidates(
        self, cuts: Sequence[WholeCut], criterion: CriterionLike = "reconstruction"
    ) -> list[CutCandidate]:
        """Try cuts, measure each right after compensation, and undo it.

        Units and weights are ranked across the whole network. Cuts of the same units are made once
        for all the cuts of weights that follow.

        Args:
            cuts: the cuts to try.
            criterion: ranks units and weights.

        Returns:
            The cuts that are possible, those of the same units next to each other.

        Raises:
            CriterionError: the criterion cannot score some units or weights. `reconstruction` needs
                a layer that reads them, which a table of positions does not have.
        """
        planner = self._planner(criterion)
        units = [cut.units for cut in cuts if cut.units is not None]
        unique = [target for place, target in enumerate(units) if target not in units[:place]]
        plans = planner(unique, granularity="unit", now=self.start)
        found: list[CutCandidate] = []
        for target, plan in zip([None, *unique], [[], *plans], strict=True):
            same = [cut for cut in cuts if cut.units == target]
            if plan is not None and same:
                found += self._after_units(same, plan, planner)
        return found

    def apply(self, plan: list[Edit]) -> None:
        """Carry out a plan with compensation, for the caller to undo."""
        self.graph.apply(plan, compensate=self.calibration)

    def utility_of(self, metric: float, state: CostAndMetrics) -> float:
        """Return metric − λ · relative cost of a state of the network."""
        relative = self.cost.relative(state.cost, self.start.cost)
        return utility(metric, relative, self.cost_weight)

    def measured(self) -> CostAndMetrics:
        """Measure the present network."""
        return cost_and_metrics(self.graph, self.task, self.costs)

    def _after_units(
        self, cuts: Sequence[WholeCut], plan: list[Edit], planner: CutPlanner
    ) -> Iterator[CutCandidate]:
        """Yield the candidates that share one cut of units."""
        begin = time.perf_counter()
        with undone(self.graph):
            if plan:
                self.apply(plan)
            now = self.measured() if plan else self.start
            shared = (plan,) if plan else ()
            weights = [cut.weights for cut in cuts if cut.weights is not None]
            plans = iter(planner(weights, granularity="weight", now=now))
            for cut in cuts:
                masks = [] if cut.weights is None else next(plans)
                if masks:
                    with undone(self.graph):
                        self.apply(masks)
                        after = self.measured()
                    yield self._candidate(cut, (*shared, masks), after, begin)
                elif masks is not None:
                    yield self._candidate(cut, shared, now, begin)
                begin = time.perf_counter()

    def _planner(self, criterion: CriterionLike) -> CutPlanner:
        return partial(
            plan_cuts,
            self.graph,
            self.task,
            costs=self.costs,
            generator=self.generator,
            criterion=criterion,
        )

    def _candidate(
        self, cut: WholeCut, plans: Plans, after: CostAndMetrics, begin: float
    ) -> CutCandidate:
        return CutCandidate(
            cut=cut,
            plans=plans,
            after=after,
            relative_cost=self.cost.relative(after.cost, self.start.cost),
            smooth_utility=self.utility_of(after.validation.smooth, after),
            duration_s=time.perf_counter() - begin,
        )
