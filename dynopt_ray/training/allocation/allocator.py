"""`allocate`: choose the widths that meet a budget at the smallest predicted loss."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Cost, CostKind, Graph, trace
from dynopt_ray.tasks import Task
from dynopt_ray.training.allocation.arguments import check_limits
from dynopt_ray.training.allocation.curves import read_curves
from dynopt_ray.training.allocation.knapsack import Knapsack
from dynopt_ray.training.allocation.sensitivities import sensitivity
from dynopt_ray.training.arguments import check_is_task
from dynopt_ray.training.budgets import Budget, Widths, asks_latency, fractions_hint
from dynopt_ray.training.loop import Costs
from dynopt_ray.training.pruning import check_min_widths, least_widths, most_held, unreachable

if TYPE_CHECKING:
    import pandas as pd


def allocate(
    model: nn.Module | Graph,
    task: Task,
    budget: Budget,
    *,
    curves: "pd.DataFrame | None" = None,
    min_widths: Widths | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Choose the widths that meet a budget at the smallest predicted increase of the loss.

    `sensitivity` measures how much the loss rises when a single group loses units. These increases
    are added up as if groups did not interact. Costs do depend on the widths of several groups and
    are computed for all widths together. The search first descends greedily: it takes the step to
    a measured width that adds the least loss per cost saved. It then gives back units that fit,
    and finally exchanges units between two groups as long as this lowers the sum. The result is
    not proven to be optimal. The network is neither trained nor changed. The result serves as a
    target for `prune` and as a baseline for learned policies.

    Args:
        model: the network, or its graph.
        task: what it has learned.
        budget: limits on params, flops, bytes or latency_ms, as fractions of the network's present
            cost or as absolute values. Latencies are predicted by a model that is fitted to a few
            measured networks.
        curves: what `sensitivity` returned for this network. Losses are made non-decreasing in the
            number of removed units, and interpolated linearly between measured widths. No group
            becomes narrower than its narrowest measurement, and groups without a curve keep their
            width. Default: measured now, for units scored by magnitude, with compensation.
        min_widths: group name -> fewest units to keep.
        seed: seed of `sensitivity`, if it is called.

    Returns:
        Group name -> width to keep, for all groups, in forward order.

    Raises:
        BudgetError: the budget cannot be met even at the minimum widths. The message gives the
            lowest cost and the groups that account for it.
        EditError: the network is within the budget already, the curves belong to other widths, or
            an entry of `min_widths` is impossible.
        UnknownNameError: a name in `curves` or `min_widths` is not a group.
        ValueError: the budget limits nonzero, which widths alone do not determine, or a loss is not
            finite.
        TypeError: an argument has the wrong type.

    References:
        The problem is a multiple-choice knapsack whose costs depend on each other. Shen et al.
        2022, "Structural Pruning via Latency-Saliency Knapsack", solve one for latencies and
        first-order scores.

    Example:
        >>> import pandas as pd
        >>> from dynopt_ray.tasks import load_task
        >>> task = load_task("digits-mlp", {"hidden": [10, 10]})
        >>> model = task.new_model(seed=0)
        >>> curves = pd.DataFrame(
        ...     [("0", 10, 0.1), ("0", 5, 0.9), ("2", 10, 0.1), ("2", 5, 0.2)],
        ...     columns=["group", "width", "loss"],
        ... )
        >>> allocate(model, task, Budget(params=0.9), curves=curves)
        {'0': 10, '2': 5}
    """
    check_is_task("allocate", task)
    check_limits(budget)
    check_min_widths(min_widths, caller="allocate")
    graph = model if isinstance(model, Graph) else trace(model, task.example_inputs())
    least = least_widths(graph, start_widths=graph.widths, min_widths=min_widths or {})
    costs = Costs(graph, task.example_inputs())
    start = costs.now(latency=asks_latency(budget))
    if start.latency_ms is not None:
        costs.correct(graph.widths, start.latency_ms)
    limits = budget.limits(start)
    if all(getattr(start, kind) <= limit for kind, limit in limits.items()):
        raise EditError(
            f"allocate: the network is within {budget!r} already, with "
            f"{', '.join(f'{kind}={getattr(start, kind)}' for kind in limits)}. Lower the budget"
            + fractions_hint(budget)
        )
    costs_at = partial(_costs_at, costs, budget)
    if curves is None:
        _check_reachable(budget, start, costs_at, least)  # fail before the slow measurements
        curves = sensitivity(graph, task, seed=seed)
    knapsack = Knapsack(read_curves(curves, graph, least=least), limits, costs_at)
    narrowest = {name: curve.widths[0] for name, curve in knapsack.curves.items()}
    lower = any(width > least[name] for name, width in narrowest.items())
    _check_reachable(
        budget,
        start,
        costs_at,
        {**graph.widths, **narrowest},
        hint="; measure larger fractions to go lower" if lower else "",
    )
    return knapsack.solved(graph.widths)


def _costs_at(costs: Costs, budget: Budget, widths: Widths) -> dict[CostKind, float]:
    """Return the costs that a budget limits, at other widths."""
    cost = costs.at(widths)
    return {
        kind: costs.latency_ms_at(widths) if kind == "latency_ms" else getattr(cost, kind)
        for kind in budget.kinds
    }


def _check_reachable(
    budget: Budget,
    start: Cost,
    costs_at: Callable[[Widths], dict[CostKind, float]],
    lowest: Widths,
    *,
    hint: str = "",
) -> None:
    """Refuse a budget that even the lowest widths exceed.

    Raises:
        BudgetError: the budget is exceeded. The message gives the cost of the lowest widths and
            the groups that account for it.
    """
    cost = costs_at(lowest)
    if all(cost[kind] <= limit for kind, limit in budget.limits(start).items()):
        return

    def obstacles(kind: CostKind) -> str:
        held = {name: cost[kind] - costs_at({**lowest, name: 0})[kind] for name in lowest}
        return most_held(lowest, held) + hint

    raise unreachable(budget, start, cost, obstacles=obstacles)
