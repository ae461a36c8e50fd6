"""`prune`: score, cut, recover, retrain and compare, round by round, until a target is met."""

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
    """The result of `prune`.

    Attributes:
        history: a DataFrame with one row per round; row 0 describes the network before. Columns:
            round, num_removed, num_returned, params, nonzero, flops (of one sample), bytes,
            latency_ms, cut_loss and cut_metric (right after the cut), train_loss, trained_kept,
            loss, metric and confidence (at the end of the round, on validation data),
            duration_s, and `width/<group>` for each group.
        before: cost and metrics before pruning.
        after: cost and metrics after pruning.
        test: metrics on the test split, which influenced no decision; None without a test split.
        receipts: one for each round that changed the network; `undo()` the last one first. Their
            costs count the FLOPs of the inputs that the graph was traced with, which are two
            samples or more.
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

    Each round scores units (or weights) on training data, cuts the least important ones, optionally
    gives some of them back, and retrains. The retrained network is kept if it does at least as well
    on validation data as the cut one. Test data are used once, at the end. Frozen parameters are
    cut and refitted like all others, but not retrained.

    Args:
        model: the network, or its graph (e.g. traced with some groups fixed).
        task: what it has learned.
        target: a `Budget`, `Fraction` or `Threshold`; or a mapping such as {"0": 16} from a group,
            named by any of its producers, to the number of units to keep. `allocate` makes such a
            mapping from a budget. Within each group the least important units are removed, so the
            scope does not matter. None if the granularity is a pattern.
        criterion: scores importance; see `unit_scores`.
        granularity: "unit" makes tensors smaller. "weight" holds single weights at zero. "2:4" (or
            another N:M) holds weights at zero so that each output reads at most 2 of every 4
            neighbouring inputs, as sparse tensor cores require. Several rounds approach a pattern
            block by block. Weights whose number of inputs is not a multiple of 4 are left alone.
        scope: "layer" removes the same fraction of each group (or parameter). "global" removes
            the least important ones of the whole network, with scores of units relative to the
            mean of their group and scores of weights relative to the Euclidean norm of the scores
            of their parameter; see `comparable`.
        rounds: number of rounds in which the target is approached.
        schedule: round (1 … rounds) -> fraction of the way to the target, rising to 1. Default:
            equal steps.
        retrain: number of optimizer steps after each cut, at the optimizer's learning rate; or a
            `Retraining(num_steps, schedule, …)`, which can also stop early, restore the best
            state, and learn from the network before pruning. Default: no retraining.
        compensate: True refits the layers that lost inputs or weights on 4,096 training samples.
            Batches of inputs refit them on these inputs instead. None or False disables the refit.
        recovery: `Random` and `Greedy` give back a part of each cut, `Regrowth` gives back weights
            of any earlier cut too. Each cut first removes this part in addition, so that the
            target holds after the recovery. Not allowed if the target is a mapping.
        min_widths: group name -> fewest units to keep. Only if units are removed.
        optimizer: the optimizer over the network's parameters; it follows every edit. Default, if
            the network is retrained: Adam with learning rate 0.001.
        seed: seed of all random choices, including the order of training rows. Torch's generators
            are seeded during the call and restored afterwards.

    Raises:
        BudgetError: the target cannot be reached. The message gives the lowest cost and what
            prevents a lower one. Nothing has been changed. A latency may turn out to be out of
            reach in a later round, when it is measured; earlier rounds then stay in effect.
        EditError: the target would remove nothing, an entry of `min_widths` is impossible, or the
            optimizer trains another network; a mapping gives a width that its group cannot keep or
            two widths for one group, or is combined with a recovery or a granularity other than
            "unit". A threshold below all scores is refused too, unless retraining may lower
            scores before later rounds.
        UnknownNameError: an unknown criterion, granularity, scope or group.
        DivergedError: a loss became NaN or infinite. The network is as it was before that round.
            Earlier rounds stay in effect, as after Ctrl-C; the graph's receipts can undo them.
        ValueError: a number is out of range, the schedule does not rise to 1, or arguments
            contradict each other.
        TypeError: an argument has the wrong type.

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
        raise ValueError("prune: min_widths count units; leave them out if weights are removed")
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
    """Check granularity, target and recovery together; return what is removed and how far.

    Raises:
        UnknownNameError: an unknown granularity.
        ValueError: the arguments contradict each other, or a pattern keeps nothing or everything.
        TypeError: the target or the recovery has the wrong type.
        EditError: see `check_prune_target`.
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
