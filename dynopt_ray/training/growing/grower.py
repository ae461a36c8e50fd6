"""`grow`: widen groups without changing the output, and train after each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import UnknownNameError
from dynopt_ray.schedules import Schedule
from dynopt_ray.structure import Graph, Receipt, trace
from dynopt_ray.tasks import AddedLoss, Metrics, Task, TrainStats
from dynopt_ray.training.arguments import check_callable, check_follows, check_is_task, round_shares
from dynopt_ray.training.budgets import Budget, Widths, asks_latency, larger_widths
from dynopt_ray.training.growing.arguments import check_grow_target
from dynopt_ray.training.growing.limits import Growth
from dynopt_ray.training.growing.planner import (
    CRITERIA,
    INITS,
    GrowthCriterion,
    GrowthInit,
    Planner,
)
from dynopt_ray.training.loop import (
    Attempt,
    CostAndMetrics,
    Costs,
    attempt,
    cost_and_metrics,
    history_table,
    in_round,
    row,
    seeded,
)
from dynopt_ray.training.numbers import finite, not_negative, whole
from dynopt_ray.training.retraining import Retraining, as_retraining, default_optimizer

if TYPE_CHECKING:
    import pandas as pd

When = Callable[[Sequence[float]], bool]
"""Validation losses since the last growth, oldest first -> whether to grow now."""


@dataclass(frozen=True, eq=False)
class GrowResult:
    """The result of `grow`.

    Attributes:
        history: a DataFrame with one row per round; row 0 describes the network before. Columns:
            round, num_added, kept, num_trainings, train_loss, loss, metric and confidence (on
            validation data), the costs, duration_s, and `width/<group>` for each group.
        before: cost and metrics before growing.
        after: cost and metrics after growing.
        test: metrics on the test split, which influenced no decision; None without a test split.
        receipts: one for each round that was kept and changed the network; `undo()` the last one
            first. Their costs count the FLOPs of the inputs that the graph was traced with, which
            are two samples or more.
        graph: the traced network.
    """

    history: "pd.DataFrame"
    before: CostAndMetrics
    after: CostAndMetrics
    test: Metrics | None
    receipts: tuple[Receipt, ...]
    graph: Graph


def stalled(*, min_gain: float = 0.01, max_trainings: int = 10) -> When:
    """Return a rule that grows when the last training hardly lowered the validation loss.

    Args:
        min_gain: the smallest decrease of the loss, relative to the loss before, for which
            training continues; >= 0.
        max_trainings: number of trainings in a round after which the network grows anyway.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range.

    Example:
        >>> when = stalled(min_gain=0.1)
        >>> when([1.0]), when([1.0, 0.5]), when([1.0, 0.5, 0.49])
        (False, False, True)
    """
    min_gain = not_negative("stalled: min_gain", min_gain)
    max_trainings = whole("stalled: max_trainings", max_trainings, least=1)

    def when(losses: Sequence[float]) -> bool:
        if len(losses) >= max_trainings:
            return True
        return len(losses) > 1 and losses[-2] - losses[-1] < min_gain * abs(losses[-2])

    return when


def grow(
    model: nn.Module | Graph,
    task: Task,
    *,
    target: Budget | Widths,
    train: int | Retraining,
    criterion: GrowthCriterion = "even",
    init: GrowthInit = "fresh",
    when: When | None = None,
    rounds: int = 4,
    schedule: Schedule | None = None,
    min_gain: float | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
) -> GrowResult:
    """Grow a network in place until it meets a target, with training after every step.

    A growth changes the network's output by no more than rounding. Groups that cannot grow without
    changing the output keep their width. New units contribute nothing to the output at first, but
    have a gradient from the first step.

    Args:
        model: the network, or its graph.
        task: what it learns.
        target: a budget, e.g. `Budget(params=2.0)` for the widest network with at most twice the
            parameters; or a mapping from a group, named by any of its producers, to its final
            width. For a budget on non-zero weights, all weights count that are not masked. A
            latency is measured before widths are accepted.
        train: number of optimizer steps per training, at the optimizer's learning rate; or a
            `Retraining(num_steps, schedule, …)`. With `restart=False` its schedule spans all
            trainings. With `distillation`, the teacher is the small network before it grows.
        criterion: how a budget is spread over groups. "even": each group grows by the same
            fraction of its starting width, rounded to whole units. "gain": groups grow where new
            units could lower the loss most for their cost, judged by gradients; see
            `rank_candidates`. Or a rule: (graph, task) -> mapping from group name to the worth of
            its next unit. The worth is assumed to fall to a quarter when the group has doubled.
        init: how new units start. "fresh" and "split": see `Grow`. "gradmax": three times as many
            units are drawn, and those that could lower the loss most are kept.
        when: decides after each training whether the network grows or trains again, e.g.
            `stalled()`. Only this rule ends a round, so it must return True at some time.
            Default: one training per round.
        rounds: number of steps in which the target is approached.
        schedule: round (1 … rounds) -> fraction of the way to the target, rising to 1. Default:
            equal steps.
        min_gain: growing ends, and its last step is undone, if a step and its training raise the
            mean of accuracy and confidence on validation data by less than this. It is an absolute
            difference, unlike in `stalled`. None grows until the target is met.
        optimizer: the optimizer over the network's parameters; it follows every edit. Default:
            Adam with learning rate 0.001. If it corrects its moments for the number of steps, as
            Adam does, this number restarts for parameters that grew (except in RAdam, which would
            warm up again).
        seed: seed of all random choices; see `prune`.

    Raises:
        BudgetError: the network already exceeds the budget, or its cost hardly depends on the
            widths, as may happen with the latency of small networks.
        EditError: no group can grow exactly, a target width is not a larger whole number or cannot
            be reached exactly, two widths contradict each other, or the optimizer trains another
            network.
        DivergedError: a loss became NaN or infinite. The network is as it was before that round.
        UnknownNameError: an unknown group, criterion, or way to start new units.
        ValueError: a number is out of range, the schedule does not rise to 1, a criterion is given
            with target widths, or a rule does not give every group a worth.
        TypeError: an argument has the wrong type.

        Except for DivergedError and errors about a rule's values, all errors are raised before
        anything has changed.

    References:
        Evci et al. 2022, "GradMax: Growing Neural Networks using Gradient Information".
        Chen, Goodfellow, Shlens 2016, "Net2Net".

    Example:
        >>> from dynopt_ray.tasks import load_task
        >>> task = load_task("digits-mlp", {"hidden": [8, 8]})
        >>> result = grow(task.new_model(seed=0), task, target={"0": 16}, train=20)
        >>> result.history["width/0"].tolist()
        [8, 10, 12, 14, 16]
    """
    check_is_task("grow", task)
    check_grow_target(target)
    check_callable("grow: when", when, "a function of the losses such as stalled(), or None")
    _check_ways(target, criterion, init, min_gain)
    training = as_retraining("grow: train", train, least=1)
    assert training is not None
    shares = round_shares("grow", whole("grow: rounds", rounds, least=1), schedule)
    graph = model if isinstance(model, Graph) else trace(model, task.example_inputs())
    check_follows(optimizer, graph.model, trains=True)
    if optimizer is None:
        optimizer = default_optimizer(graph.model)
    costs = Costs(graph, task.example_inputs())
    if not isinstance(target, Budget):
        target = larger_widths(graph, target)
    with seeded(graph.model, seed) as generator:
        judge = partial(cost_and_metrics, graph, task, costs, latency=asks_latency(target))
        start = judge()
        if start.cost.latency_ms is not None:
            costs.correct(start.widths, start.cost.latency_ms)
        planner = Planner(Growth(graph, costs, start, target), task, criterion, init, generator)
        added_loss = training.teacher_loss(graph.model, task)
        trainer = _Trainer(training, task, graph.model, optimizer, generator, added_loss, when)
        return _run(planner, trainer, judge, shares, min_gain)


def _run(
    planner: Planner,
    trainer: "_Trainer",
    judge: Callable[[], CostAndMetrics],
    shares: Sequence[float],
    min_gain: float | None,
) -> GrowResult:
    graph, task, start = planner.growth.graph, planner.task, planner.growth.start
    rows = [row(start, round=0, num_added=0, kept=True, num_trainings=0, duration_s=0.0)]
    receipts: list[Receipt] = []
    now = start
    for number, share in enumerate(shares, start=1):
        plan, draw = planner.plan(share)
        with in_round(number, len(shares)):
            step = attempt(
                graph,
                plan,
                judge=judge,
                accept=partial(_pays, min_gain),
                before=now,
                recover=trainer,
                optimizer=trainer.optimizer,
                generators=[trainer.generator],
                seed=draw,
            )
        rows.append(_row(number, step))
        if not step.kept:
            break
        receipts += [] if step.receipt is None else [step.receipt]
        now = step.after
    test = task.evaluate(graph.model, "test") if "test" in task.splits else None
    return GrowResult(history_table(rows), start, now, test, tuple(receipts), graph)


def _pays(min_gain: float | None, before: CostAndMetrics, after: CostAndMetrics) -> bool:
    return min_gain is None or after.validation.smooth - before.validation.smooth >= min_gain


@dataclass(eq=False)
class _Trainer:
    """Trains a network until `when` says that it may grow; once if there is no `when`."""

    training: Retraining
    task: Task
    model: nn.Module
    optimizer: Optimizer
    generator: torch.Generator
    added_loss: AddedLoss | None
    when: When | None
    num_done: int = 0
    sizes: dict[nn.Parameter, torch.Size] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = self._sizes()

    def __call__(self) -> list[TrainStats]:
        self._restart_step_counts()
        stats, losses = [self._train()], list[float]()
        while self.when is not None:
            losses.append(self.task.evaluate(self.model).loss)
            if self.when(losses):
                break
            stats.append(self._train())
        return stats

    def _sizes(self) -> dict[nn.Parameter, torch.Size]:
        return {parameter: parameter.shape for parameter in self.model.parameters()}

    def _restart_step_counts(self) -> None:
        """Reset the step counts of Adam and similar optimizers for parameters that grew.

        The moments of new entries start at zero. If they were corrected for the old, large step
        count, steps of up to six times the learning rate would follow, in entries that are easy to
        spoil. The price is that old entries move at about half their pace for a while. Adamax and
        RAdam are left alone: Adamax makes small steps with new entries anyway, and RAdam would
        warm up again.
        """
        if isinstance(self.optimizer, torch.optim.RAdam):
            return
        before, self.sizes = self.sizes, self._sizes()
        for parameter, size in self.sizes.items():
            state = self.optimizer.state.get(parameter, {})
            if before.get(parameter) != size and "exp_avg_sq" in state and "step" in state:
                state["step"] = 0 * state["step"]
                if "mu_product" in state:  # NAdam corrects the first moment by this product
                    state["mu_product"] = 0 * state["mu_product"] + 1

    def _train(self) -> TrainStats:
        stats = self.training(
            self.task,
            self.model,
            self.optimizer,
            generator=self.generator,
            added_loss=self.added_loss,
            num_before=self.num_done,
        )
        self.num_done += 1
        return stats


def _check_ways(target: object, criterion: object, init: object, min_gain: float | None) -> None:
    if not callable(criterion) and criterion not in CRITERIA:
        raise UnknownNameError("growth criterion", str(criterion), CRITERIA)
    if not isinstance(target, Budget) and criterion != "even":
        raise ValueError(
            f"grow: the target gives the widths, so criterion={criterion!r} has nothing to "
            "decide; leave it out, or give a Budget"
        )
    if init not in INITS:
        raise UnknownNameError("way to start new units", str(init), INITS)
    if min_gain is not None:
        finite("grow: min_gain", min_gain)


def _row(number: int, step: Attempt[CostAndMetrics, list[TrainStats]]) -> dict[str, Any]:
    stats = step.recovered or []
    return row(
        step.after,
        round=number,
        num_added=sum(step.after.widths.values()) - sum(step.before.widths.values()),
        kept=step.kept,
        num_trainings=len(stats),
        train_loss=stats[-1].mean_loss if stats else None,
        duration_s=step.duration_s,
    )
