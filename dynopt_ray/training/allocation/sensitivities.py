"""`sensitivity`: measure how the loss rises when a single width group loses units."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynopt_ray.criteria import (
    Criterion,
    CriterionLike,
    Evidence,
    build_criterion,
    unit_scores,
    weight_scores,
)
from dynopt_ray.errors import DivergedError, EditError, UnknownNameError
from dynopt_ray.structure import Graph, Inputs, Surroundings, buffers_kept, trace, within
from dynopt_ray.tasks import Task
from dynopt_ray.training.allocation.arguments import check_fractions
from dynopt_ray.training.arguments import check_is_task
from dynopt_ray.training.budgets import share_of
from dynopt_ray.training.loop import (
    SCORE_ROWS,
    CostAndMetrics,
    Costs,
    calibration_inputs,
    cost_and_metrics,
    history_table,
    sample_batches,
    seeded,
    undone,
)
from dynopt_ray.training.pruning import (
    GRANULARITIES,
    Granularity,
    Pattern,
    Pool,
    unit_pool,
    weight_pool,
)

if TYPE_CHECKING:
    import pandas as pd

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def sensitivity(
    model: nn.Module | Graph,
    task: Task,
    *,
    fractions: Iterable[float] = FRACTIONS,
    criterion: CriterionLike = "magnitude",
    granularity: Granularity = "unit",
    compensate: bool | Iterable[Inputs] | Tensor | None = True,
    groups: str | Iterable[str] | None = None,
    seed: int = 0,
) -> "pd.DataFrame":
    """Measure, for each width group alone, the loss as a function of the removed fraction.

    For each group and each fraction, the least important units of the group are cut, the network is
    evaluated on validation data without retraining, and the cut is undone. The network, its masks,
    its train or eval modes and all random states are restored bit for bit, even after an error or
    Ctrl-C.

    Args:
        model: the network, or its graph (e.g. traced with some groups fixed).
        task: what it has learned.
        fractions: the fractions to remove, each in (0, 1).
        criterion: scores the importance of units; see `unit_scores`. The network is scored once,
            before the first cut.
        granularity: "unit" cuts units of width groups. "weight" masks weights of parameters with
            two or more dimensions; weights that are masked already do not count.
        compensate: True refits the layers that lost inputs or weights on 4,096 training samples,
            as `prune` does. Batches of inputs refit them on these inputs instead. None or False
            disables the refit.
        groups: names of the groups (or parameters) to measure. Default: all.
        seed: seed of the choice of training rows. If the criterion uses no data, `prune` makes the
            same cuts with the same seed.

    Returns:
        A DataFrame with one row per group and fraction, with groups in forward order. The first
        row of each group has the fraction 0 and describes the uncut network. Columns: group,
        remove_fraction (as requested), width (units or weights left), num_removed (the fraction
        rounded down to whole steps and limited by the group's minimum width), loss, metric and
        confidence on the validation split, and params, nonzero, flops (of one sample) and bytes of
        the cut network. Fractions that remove the same number are measured once. Every other cut
        takes one refit and one evaluation.

    Raises:
        UnknownNameError: an unknown criterion, granularity or group.
        EditError: no group can be resized, or a named group cannot.
        DivergedError: a loss is NaN or infinite. A note says for which cut.
        ValueError: there are no fractions, one is not in (0, 1), or the granularity is a pattern.
        TypeError: an argument has the wrong type, or the criterion cannot score weights.

    References:
        Li, Kadav, Durdanovic, Samet, Graf 2017, "Pruning Filters for Efficient ConvNets",
        section 3.2. Here cuts are compensated.

    Example:
        >>> from dynopt_ray.tasks import load_task
        >>> task = load_task("digits-mlp", {"hidden": [16, 8]})
        >>> curves = sensitivity(task.new_model(seed=0), task, fractions=[0.25, 0.5])
        >>> curves.pivot(index="remove_fraction", columns="group", values="width").values.tolist()
        [[16, 8], [12, 6], [8, 4]]
    """
    check_is_task("sensitivity", task)
    if isinstance(granularity, str) and Pattern.parse(granularity):
        raise ValueError(
            f"sensitivity: granularity {granularity!r} determines how much is removed, so there is "
            "no curve to measure; use 'weight'"
        )
    if granularity not in GRANULARITIES:
        raise UnknownNameError("granularity", granularity, GRANULARITIES)
    shares = check_fractions(fractions)
    criterion = build_criterion(criterion)
    graph = model if isinstance(model, Graph) else trace(model, task.example_inputs())
    names = _names(graph, granularity, groups)

    def scanned() -> "pd.DataFrame":
        kept = buffers_kept(graph.model)
        with kept, seeded(graph.model, seed) as generator, undone(graph):
            calibration = calibration_inputs(compensate, task, generator)
            steps = {g.name: g.step for g in graph} if granularity == "unit" else {}
            costs = Costs(graph, task.example_inputs())
            start = cost_and_metrics(graph, task, costs)
            pool = _pool(graph, task, costs, criterion, granularity, generator)
            scan = _Scan(graph, task, costs, pool, calibration, steps)
            rows = [row for name in names for row in scan.rows(name, shares, start)]
            return history_table(rows)

    return within(Surroundings(graph.model), scanned)


@dataclass(frozen=True, eq=False)
class _Scan:
    """The data that all cuts of one `sensitivity` share."""

    graph: Graph
    task: Task
    costs: Costs
    pool: Pool
    calibration: Sequence[Inputs] | None
    steps: Mapping[str, int]

    def rows(
        self, name: str, fractions: Sequence[float], start: CostAndMetrics
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of one group, starting with the uncut network."""
        candidates, step = self.pool.candidates, self.steps.get(name, 1)
        size = candidates.sizes[candidates.names.index(name)]
        most = share_of(int(candidates.least({name: size}).sum()), 1.0, step=step)
        number, now = 0, start
        for fraction in (0.0, *fractions):
            wanted = min(share_of(size, fraction, step=step), most)
            if wanted != number:
                number, now = wanted, self._without(name, wanted)
            yield _row(name, fraction, size - number, number, now)

    def _without(self, name: str, number: int) -> CostAndMetrics:
        """Measure the network without the `number` least important candidates of one group."""
        plan = self.pool.plan(self.pool.candidates.least({name: number}))
        # `sensitivity` wraps everything in `undone` too: if Ctrl-C interrupts the end of this
        # context, the outer one still undoes the cut.
        with undone(self.graph):
            self.graph.apply(plan, compensate=self.calibration)
            try:
                return cost_and_metrics(self.graph, self.task, self.costs)
            except DivergedError as error:
                error.add_note(f"The cut removed {number} of the {self.pool.noun} of {name!r}.")
                raise


def _names(graph: Graph, granularity: Granularity, groups: str | Iterable[str] | None) -> list[str]:
    """Return the names of the groups or parameters to measure, in forward order.

    Raises:
        EditError: there are none, or one cannot be resized.
        UnknownNameError: a name is not a group or parameter.
    """
    is_unit = granularity == "unit"
    known = list(graph.widths if is_unit else Evidence(graph).weights)
    if not known:
        raise EditError(
            f"sensitivity: no {'width group' if is_unit else 'weight'} of "
            f"{type(graph.model).__name__} can be cut"
        )
    if groups is None:
        return known
    asked = [groups] if isinstance(groups, str) else list(groups)
    if not asked:
        raise EditError("sensitivity: groups is empty; name at least one, or pass None for all")
    if is_unit:
        asked = [graph[name].name for name in asked]
    for name in asked:
        if name not in known:
            raise UnknownNameError("parameter of weights", name, known)
    return [name for name in known if name in asked]


def _pool(
    graph: Graph,
    task: Task,
    costs: Costs,
    criterion: Criterion,
    granularity: Granularity,
    generator: torch.Generator,
) -> Pool:
    """Return the candidates for removal, ranked within each group."""
    batches = sample_batches(task, SCORE_ROWS, generator)
    if granularity == "weight":
        scores = weight_scores(graph, criterion, batches, loss=task.loss)
        return weight_pool(graph, costs.now(), scores, "layer")
    scores = unit_scores(graph, criterion, batches, loss=task.loss)
    return unit_pool(graph, costs, scores, "layer", start_widths=graph.widths, min_widths={})


def _row(
    name: str, fraction: float, width: int, num_removed: int, now: CostAndMetrics
) -> dict[str, Any]:
    cost, validation = now.cost, now.validation
    return {
        "group": name,
        "remove_fraction": fraction,
        "width": width,
        "num_removed": num_removed,
        "loss": validation.loss,
        "metric": validation.metric,
        "confidence": validation.confidence,
        "params": cost.params,
        "nonzero": cost.nonzero,
        "flops": cost.flops,
        "bytes": cost.bytes,
    }
