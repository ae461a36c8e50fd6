"""`prune`: score, cut, give back, retrain, compare, round by round, until a target is met."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.criteria import CriterionLike, Scope, build_criterion
from dynopt_ray.errors import UnknownNameError
from dynopt_ray.schedules import Schedule
from dynopt_ray.structure import Graph, Inputs, Receipt, trace
from dynopt_ray.tasks import Metrics, Task
from dynopt_ray.training.arguments import check_follows, check_is_task, round_shares
from dynopt_ray.training.budgets import Target, asks_latency, wanted_widths
from dynopt_ray.training.loop import (
    CostAndMetrics,
    Costs,
    calibration_inputs,
    cost_and_metrics,
    history_table,
    in_round,
    row,
    seeded,
)
from dynopt_ray.training.numbers import whole
from dynopt_ray.training.pruning.arguments import (
    check_min_widths,
    check_prune_target,
    check_recovery,
)
from dynopt_ray.training.pruning.candidates import Pool
from dynopt_ray.training.pruning.patterns import Pattern
from dynopt_ray.training.pruning.recovery import Recovery
from dynopt_ray.training.pruning.regrowth import Regrowth
from dynopt_ray.training.pruning.rounds import (
    GRANULARITIES,
    Granularity,
    Pruning,
    Round,
    checked_pool,
    prune_round,
)
from dynopt_ray.training.retraining import Retraining, as_retraining, default_optimizer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What pruning did.

    Attributes:
        history: a DataFrame with one row per round; row 0 is the network before. Columns:
            round, num_removed, num_returned, params, nonzero, flops (of one sample), bytes,
            latency_ms, cut_loss and cut_metric (right after the cut), train_loss, trained_kept,
            loss, metric and confidence (at the end of the round, on validation data),
            duration_s, and `width/<group>` for each group.
        before: the network before.
        after: the network after.
        test: the final figure, on data that decided nothing; None without a test split.
        receipts: one per round that changed the network; `undo()` the last one first. Their
            costs count the FLOPs of the inputs that the graph was traced with, two samples or more.
        graph: the traced network.
    """

    history: "pd.DataFrame"
    before: CostAndMetrics
    after: CostAndMetrics
    test: Metrics | None
    receipts: tuple[Receipt, ...]
    graph: Graph


def prune(
    model: nn.Module | Graph,
    task: Task,
    *,
    target: Target | None = None,
    criterion: CriterionLike = "magnitude",
    granularity: Granularity | str = "unit",
    scope: Scope = "global",
    rounds: int = 1,
    schedule: Schedule | None = None,
    retrain: int | Retraining | None = None,
    compensate: bool | Iterable[Inputs] | Tensor | None = True,
    recovery: Recovery | Regrowth | None = None,
    min_widths: Mapping[str, int] | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
) -> PruneResult:
    """Prune a trained network in place until it meets a target.

    Each round scores on training data, cuts what is least important, optionally gives some of
    it back, retrains, and keeps the retrained network if it does better on validation data than
    the cut one. Test data are touched once, at the end. Frozen parameters are cut and refitted like
    all others, and not retrained.

    Args:
        model: the network, or its graph (traced with groups fixed, say).
        task: what it has learned.
        target: `Budget`, `Fraction` or `Threshold`, or a mapping such as {"0": 16} that gives
            groups the number of units they keep, whichever of a group's producers names it;
            `allocate` makes one of a budget. Within each group the least important go, so the
            scope does not count. None where the granularity says it.
        criterion: what is important; see `unit_scores`.
        granularity: "unit" makes tensors smaller, "weight" holds single weights at zero, "2:4"
            (or another N:M) so many that at most 2 of every 4 are left which an output reads
            from neighbouring inputs: what sparse tensor cores ask for. Rounds approach it block
            by block; weights whose inputs are no multiple of 4 stay as they are.
        scope: "layer" takes the same share of each group (or parameter), "global" the least
            important wherever they are: units relative to the mean of their group, weights
            relative to the length of their parameter; see `comparable`.
        rounds: in how many rounds the target is approached.
        schedule: round (1 … rounds) -> share of the way to the target, rising to 1. Default:
            in equal steps.
        retrain: optimizer steps after each cut, at the optimizer's learning rate; or
            `Retraining(num_steps, schedule, …)`, which can also stop early, go back to the best
            state, and learn from the network before pruning.
        compensate: True refits what reads removed units or lost weights on 4,096 training
            samples, inputs do so on these, None or False leaves it.
        recovery: `Random` or `Greedy` give back part of each cut, `Regrowth` weights of any
            cut. The cut goes further by that part first, so that the target still holds
            afterwards. Not beside a mapping, which leaves nothing to choose.
        min_widths: group name -> fewest units to keep; only where units go.
        optimizer: over the network's parameters; it follows every edit. Default, if there is
            retraining: Adam with rate 0.001.
        seed: of all random choices, the order of training rows among them. Torch's generators
            are seeded for the time and left as they were.

    Raises:
        BudgetError: the target cannot be reached; says the least cost and what stands in the
            way. Nothing has been changed.
        EditError: the target asks for nothing, a least width is impossible, or the optimizer
            trains another network. A mapping with a width that its group cannot keep, with two
            for one group, or beside a recovery or another granularity than "unit". A threshold
            that all scores are above is refused too, unless there are rounds to come whose
            scores retraining will have changed.
        UnknownNameError: an unknown criterion, granularity, scope or group.
        DivergedError: a loss became NaN or infinite; the network is as it was before the round.
            Earlier rounds stay, after Ctrl-C too: the graph's receipts undo them.
        ValueError: a number out of range, a schedule that does not rise to 1, or arguments that
            exclude each other.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> from dynopt_ray.tasks import load_task
        >>> from dynopt_ray.training import Budget
        >>> task = load_task("digits-mlp")
        >>> model = task.new_model(seed=0)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        >>> _ = task.train_steps(model, optimizer, 200)
        >>> result = prune(model, task, target=Budget(flops=0.5), optimizer=optimizer)
        >>> result.after.cost.flops <= result.before.cost.flops / 2
        True
    """
    check_is_task("prune", task)
    kind, aim = _aim(granularity, target, recovery)
    check_min_widths(min_widths)
    if min_widths and kind == "weight":
        raise ValueError("prune: min_widths count units; leave them out where weights go")
    retraining = as_retraining("prune: retrain", retrain, least=0)
    shares = round_shares("prune", whole("prune: rounds", rounds, least=1), schedule)
    graph = model if isinstance(model, Graph) else trace(model, task.example_inputs())
    check_follows(optimizer, graph.model, trains=retraining is not None)
    if optimizer is None and retraining is not None:
        optimizer = default_optimizer(graph.model)
    if isinstance(aim, Mapping):
        aim = wanted_widths(graph, aim, min_widths=min_widths or {})
    with seeded(graph.model, seed) as generator:
        costs = Costs(graph, task.example_inputs())
        start = cost_and_metrics(graph, task, costs, latency=asks_latency(aim))
        pruning = Pruning(
            graph=graph,
            task=task,
            costs=costs,
            start=start,
            target=aim,
            criterion=build_criterion(criterion),
            granularity=kind,
            scope=scope,
            min_widths=min_widths or {},
            recovery=recovery,
            calibration=calibration_inputs(compensate, task, generator),
            retraining=retraining,
            optimizer=optimizer,
            generator=generator,
            added_loss=retraining.teacher_loss(graph.model, task) if retraining else None,
        )
        return _run(pruning, shares, checked_pool(pruning, num_rounds=len(shares)))


def _aim(
    granularity: str, target: Target | None, recovery: Recovery | Regrowth | None
) -> tuple[Granularity, Target | Pattern]:
    """What goes and how far.

    Raises:
        UnknownNameError: no granularity.
        ValueError: they exclude each other, or a pattern keeps all.
        TypeError: no target, or no recovery.
    """
    check_recovery(recovery)
    for kind in GRANULARITIES:
        if granularity == kind:
            if kind == "unit" and isinstance(recovery, Regrowth):
                raise ValueError("prune: Regrowth masks weights; use granularity='weight' with it")
            aim = check_prune_target(target, granularity=kind, recovery=recovery)
            return kind, aim
    pattern = Pattern.parse(granularity) if isinstance(granularity, str) else None
    if pattern is None:
        raise UnknownNameError("granularity", granularity, [*GRANULARITIES, "2:4"])
    if target is not None or recovery is not None:
        raise ValueError(
            f"prune: granularity {granularity!r} says by itself what goes; leave out target and "
            "recovery, or use granularity='weight'"
        )
    return "weight", pattern


def _run(pruning: Pruning, shares: Sequence[float], first: Pool) -> PruneResult:
    rows = [row(pruning.start, round=0, num_removed=0, num_returned=0, duration_s=0.0)]
    receipts: list[Receipt] = []
    now = pruning.start
    for number, share in enumerate(shares, start=1):
        with in_round(number, len(shares)):
            outcome = prune_round(
                pruning,
                share=share,
                before=now,
                num_before=number - 1,
                pool=first if number == 1 else None,
            )
        now = outcome.after
        rows.append(_round_row(number, outcome))
        if outcome.cut.receipt is not None:
            receipts.append(outcome.cut.receipt)
    task, graph = pruning.task, pruning.graph
    return PruneResult(
        history=history_table(rows),
        before=pruning.start,
        after=now,
        test=task.evaluate(graph.model, "test") if "test" in task.splits else None,
        receipts=tuple(receipts),
        graph=graph,
    )


def _round_row(number: int, outcome: Round) -> dict[str, Any]:
    retrained, cut = outcome.retrained, outcome.cut
    stats = None if retrained is None else retrained.recovered
    return row(
        outcome.after,
        round=number,
        num_removed=outcome.num_removed,
        num_returned=outcome.num_returned,
        cut_loss=cut.after.validation.loss,
        cut_metric=cut.after.validation.metric,
        train_loss=None if stats is None else stats.mean_loss,
        trained_kept=None if retrained is None else retrained.kept,
        duration_s=cut.duration_s + (0.0 if retrained is None else retrained.duration_s),
    )
