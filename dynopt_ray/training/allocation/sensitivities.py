"""`sensitivity`: what each width group can spare, measured one group and one share at a time."""

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
from dynopt_ray.structure import Graph, Inputs, Surroundings, buffers_kept, trace
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
    """Measure what each width group alone can spare: its curve of loss against units removed.

    Of one group after the other a share of the least important units is cut, the network is
    evaluated on validation data without any retraining, and the cut is undone. The network, its
    masks, its modes and all random state are afterwards as they were, bit for bit, also after an
    error or Ctrl-C.

    Args:
        model: the network, or its graph (traced with groups fixed, say).
        task: what it has learned.
        fractions: the shares that are removed, each in (0, 1).
        criterion: what is important; see `unit_scores`. It scores once, on the network as it is.
        granularity: "unit" cuts units of width groups, "weight" masks weights of parameters of
            two or more dimensions; of those not masked yet.
        compensate: True refits what lost units or weights on 4,096 training samples, as `prune`
            does, inputs do so on these, None or False leaves it.
        groups: names of the groups (or parameters) to measure. Default: all.
        seed: of the choice of training rows. With a criterion that looks at no data, `prune`
            with the same seed makes the same cuts.

    Returns:
        A DataFrame with one row per group and fraction, groups in forward order, and before
        those of each group one with the fraction 0, the network as it is. Columns: group,
        remove_fraction (as asked), width (units or weights left), num_removed (the fraction
        rounded down to whole units, as far as the group's least width allows), loss, metric and
        confidence on the validation split, and params, nonzero, flops (of one sample) and bytes
        of the network so cut. Fractions that come to the same number are measured once; each
        other cut takes a refit and an evaluation.

    Raises:
        UnknownNameError: an unknown criterion, granularity or group.
        EditError: no group can be resized, or one named cannot.
        DivergedError: a loss is NaN or infinite; says where.
        ValueError: no fractions, one that is not in (0, 1), or a pattern as the granularity.
        TypeError: an argument of another type, or a criterion that is not for weights.

    References:
        Li, Kadav, Durdanovic, Samet, Graf 2017, "Pruning Filters for Efficient ConvNets",
        section 3.2; here with compensation.

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
            f"sensitivity: granularity {granularity!r} says by itself how much goes, so there is "
            "no curve to measure; use 'weight'"
        )
    if granularity not in GRANULARITIES:
        raise UnknownNameError("granularity", granularity, GRANULARITIES)
    shares = check_fractions(fractions)
    criterion = build_criterion(criterion)
    graph = model if isinstance(model, Graph) else trace(model, task.example_inputs())
    names = _names(graph, granularity, groups)
    surroundings = Surroundings(graph.model)
    kept = buffers_kept(graph.model)
    with surroundings, surroundings, kept, seeded(graph.model, seed) as generator, undone(graph):
        calibration = calibration_inputs(compensate, task, generator)
        is_unit = granularity == "unit"
        steps = {group.name: group.step for group in graph} if is_unit else {}
        costs = Costs(graph, task.example_inputs())
        start = cost_and_metrics(graph, task, costs)
        pool = _pool(graph, task, costs, criterion, granularity, generator)
        scan = _Scan(graph, task, costs, pool, calibration, steps)
        return history_table([row for name in names for row in scan.rows(name, shares, start)])


@dataclass(frozen=True, eq=False)
class _Scan:
    """What all cuts share."""

    graph: Graph
    task: Task
    costs: Costs
    pool: Pool
    calibration: Sequence[Inputs] | None
    steps: Mapping[str, int]

    def rows(
        self, name: str, fractions: Sequence[float], start: CostAndMetrics
    ) -> Iterator[dict[str, Any]]:
        """The curve of one group, from the network as it is."""
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
        """The network without the least important of one group."""
        plan = self.pool.plan(self.pool.candidates.least({name: number}))
        # Around it all once more: there Ctrl-C that meets the end of this one is an error.
        with undone(self.graph):
            self.graph.apply(plan, compensate=self.calibration)
            try:
                return cost_and_metrics(self.graph, self.task, self.costs)
            except DivergedError as error:
                error.add_note(f"This was without {number} of the {self.pool.noun} of {name!r}.")
                raise


def _names(graph: Graph, granularity: Granularity, groups: str | Iterable[str] | None) -> list[str]:
    """The groups or parameters to measure, in forward order.

    Raises:
        EditError: there is none, or one cannot be resized.
        UnknownNameError: no such group or parameter.
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
    """What may go, ranked within each group."""
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
