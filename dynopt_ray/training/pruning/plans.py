"""Plan one cut for each of several targets, so that a caller can try them and keep one."""

from collections.abc import Mapping, Sequence

import torch

from dynopt_ray.criteria import CriterionLike, Scope, build_criterion
from dynopt_ray.errors import BudgetError
from dynopt_ray.structure import Edit, Graph
from dynopt_ray.tasks import Task
from dynopt_ray.training.budgets import Budget, Fraction, Widths, wanted_widths
from dynopt_ray.training.loop import CostAndMetrics, Costs
from dynopt_ray.training.pruning.candidates import Pool
from dynopt_ray.training.pruning.rounds import Granularity, Pruning, make_pool
from dynopt_ray.training.pruning.selection import select, select_widths

CutTarget = Budget | Fraction | Widths
"""How far to cut: limits on costs, a fraction to remove, or widths to keep."""


def plan_cuts(
    graph: Graph,
    task: Task,
    targets: Sequence[CutTarget],
    *,
    granularity: Granularity,
    now: CostAndMetrics,
    costs: Costs,
    generator: torch.Generator,
    criterion: CriterionLike = "reconstruction",
    scope: Scope = "global",
) -> list[list[Edit] | None]:
    """Plan the cut that `prune` would make in one round, for each of several targets.

    Units or weights are scored once for all targets. Nothing is changed.

    Args:
        graph: the traced network.
        task: what it has learned.
        targets: how far to cut the present network. Widths can only be given for units.
        granularity: whether units or single weights are removed.
        now: the present network; fractions refer to its costs.
        costs: the costs of the network.
        generator: draws the training rows that scores are computed from.
        criterion: scores importance; see `prune`.
        scope: see `prune`.

    Returns:
        For each target its plan, which is empty if the network is within the target already; None
        if the target cannot be reached.

    Raises:
        CriterionError: the criterion cannot score these units or weights.
        EditError: widths are out of range.
        UnknownNameError: an unknown criterion or group.
    """
    if not targets:
        return []
    pruning = Pruning(
        graph=graph,
        task=task,
        costs=costs,
        start=now,
        target=targets[0],
        criterion=build_criterion(criterion),
        granularity=granularity,
        scope=scope,
        min_widths={},
        recovery=None,
        # Not None: the caller compensates, so unmasked zeros are filled.
        calibration=(),
        retraining=None,
        optimizer=None,
        generator=generator,
    )
    pool = make_pool(pruning)
    return [_plan(pruning, pool, target) for target in targets]


def _plan(pruning: Pruning, pool: Pool, target: CutTarget) -> list[Edit] | None:
    if isinstance(target, Mapping):
        if all(pruning.graph[name].width == width for name, width in target.items()):
            return []
        widths = wanted_widths(pruning.graph, target, min_widths={})
        return pool.plan(select_widths(pool, widths).removed)
    try:
        selection = select(pool, target, scope=pruning.scope, start=pruning.start.cost)
    except BudgetError:
        return None
    return pool.plan(selection.removed)
