"""`grow`: widen all groups evenly in exact steps, training after each, until a target is met."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import BudgetError, EditError
from dynopt_ray.schedules import Schedule
from dynopt_ray.structure import Graph, Grow, Receipt, trace
from dynopt_ray.structure.edits import Init
from dynopt_ray.structure.plans import check_plan
from dynopt_ray.tasks import Metrics, Task, TrainStats
from dynopt_ray.training.arguments import (
    check_callable,
    check_follows,
    check_grow_target,
    whole,
)
from dynopt_ray.training.attempt import Attempt, attempt
from dynopt_ray.training.history import row, table
from dynopt_ray.training.measurement import Costs, Measurement, measured
from dynopt_ray.training.retraining import DEFAULT_LR, Retraining
from dynopt_ray.training.seeding import seeded
from dynopt_ray.training.targets import Budget, asks_latency, fractions_hint

if TYPE_CHECKING:
    import pandas as pd

Widths = Mapping[str, int]

When = Callable[[Sequence[float]], bool]
"""Validation losses since the last growth, oldest first -> whether it is time for the next."""

_ROUNDING = 1e-9
_BISECTIONS = 40


@dataclass(frozen=True, eq=False)
class GrowResult:
    """What growing did.

    Attributes:
        history: a DataFrame with one row per growth; row 0 is the network before. Columns:
            round, num_added, num_trainings, train_loss, loss, metric and confidence (on
            validation data), the costs, duration_s, and `width/<group>` for each group.
        before: the network before.
        after: the network after.
        test: the final figure, on data that decided nothing; None without a test split.
        receipts: one per growth; `undo()` the last one first.
        graph: the traced network.
    """

    history: "pd.DataFrame"
    before: Measurement
    after: Measurement
    test: Metrics | None
    receipts: tuple[Receipt, ...]
    graph: Graph


def stalled(*, min_gain: float = 0.01, max_trainings: int = 10) -> When:
    """It is time when the last training lowered the validation loss by too little.

    Args:
        min_gain: the least relative gain that is worth another training, >= 0.
        max_trainings: it is also time after so many of them.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> when = stalled(min_gain=0.1)
        >>> when([1.0]), when([1.0, 0.5]), when([1.0, 0.5, 0.49])
        (False, False, True)
    """
    if not min_gain >= 0:
        raise ValueError(f"stalled: min_gain is {min_gain}; it must be >= 0")
    if max_trainings < 1:
        raise ValueError(f"stalled: max_trainings is {max_trainings}; it must be at least 1")

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
    train_steps: int,
    init: Init = "fresh",
    when: When | None = None,
    rounds: int = 4,
    train_lr: Schedule | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
) -> GrowResult:
    """Grow a network in place until it meets a target, training after every step.

    The groups grow evenly: each by the same fraction of its starting width, as far as whole
    units go. No step changes the network's output by more than rounding. Groups that could
    only grow with a change of the output keep their width.

    Args:
        model: the network, or its graph.
        task: what it learns.
        target: `Budget(params=2.0)` is the widest network of at most twice the parameters;
            a mapping gives groups the width they shall have, whichever of a group's producers
            names it. Of non-zero weights a budget counts those there are and all new ones.
        train_steps: optimizer steps of one training.
        init: how new units start; see `Grow`.
        when: decides after each training whether the network grows next or trains once more,
            e.g. `stalled()`. Default: it trains once.
        rounds: in how many equal steps the target is approached.
        train_lr: the learning rate within each training; None keeps the optimizer's.
        optimizer: over the network's parameters; it follows every edit. Default: Adam with rate
            0.001.
        seed: of all random choices; see `prune`.

    Raises:
        BudgetError: the network is not below the budget as it is.
        EditError: no group can grow exactly, a width asked for is no larger whole number or
            cannot be reached exactly, two contradict each other, or the optimizer trains
            another network.
        DivergedError: a loss became NaN or infinite; the network is as it was before that round.
        UnknownNameError: no group, or no such way to start new units.
        ValueError: a number out of range.
        TypeError: an argument of another type.

        All but DivergedError before anything has changed.

    Example:
        >>> from dynopt_ray.tasks import load_task
        >>> task = load_task("digits-mlp", {"hidden": [8, 8]})
        >>> result = grow(task.new_model(seed=0), task, target={"0": 16}, train_steps=20)
        >>> result.history["width/0"].tolist()
        [8, 10, 12, 14, 16]
    """
    check_grow_target(target)
    check_callable("grow: when", when, "a function of the losses such as stalled(), or None")
    rounds = whole("grow: rounds", rounds, least=1)
    training = Retraining(whole("grow: train_steps", train_steps, least=1), train_lr)
    graph = model if isinstance(model, Graph) else trace(model, task.example_inputs())
    check_follows(optimizer, graph.model)
    if optimizer is None:
        optimizer = torch.optim.Adam(graph.model.parameters(), lr=DEFAULT_LR)
    wanted = target if isinstance(target, Budget) else _wanted(graph, target)
    costs = Costs(graph, task.example_inputs())
    judge = partial(measured, graph, task, costs, latency=asks_latency(target))
    start = judge()
    if start.cost.latency_ms is not None:
        costs.correct(start.widths, start.cost.latency_ms)
    plans = _plans(start.widths, _path(graph, costs, wanted, start, rounds), init)
    rows = [row(start, round=0, num_added=0, num_trainings=0, duration_s=0.0)]
    receipts: list[Receipt] = []
    now = start
    with seeded(graph.model, seed) as generator:
        train = partial(training, task, graph.model, optimizer, generator=generator)
        for number, plan in enumerate(plans, start=1):
            step = attempt(
                graph,
                plan,
                judge=judge,
                accept=lambda *_: True,
                before=now,
                recover=lambda: _train_until(when, train, graph.model, task),
                optimizer=optimizer,
                generators=[generator],
            )
            rows.append(_row(number, step))
            receipts += [] if step.receipt is None else [step.receipt]
            now = step.after
    test = task.evaluate(graph.model, "test") if "test" in task.splits else None
    return GrowResult(table(rows), start, now, test, tuple(receipts), graph)


def _plans(start: Widths, path: Sequence[Widths], init: Init) -> list[list[Grow]]:
    """What grows in each round."""
    return [
        [
            Grow(name, units=width - before[name], init=init)
            for name, width in after.items()
            if width > before[name]
        ]
        for before, after in itertools.pairwise([start, *path])
    ]


def _train_until(
    when: When | None, train: Callable[[], TrainStats], model: nn.Module, task: Task
) -> list[TrainStats]:
    """Train once, and go on until it is time."""
    stats, losses = [train()], list[float]()
    while when is not None:
        losses.append(task.evaluate(model).loss)
        if when(losses):
            break
        stats.append(train())
    return stats


def _row(number: int, step: Attempt[Measurement, list[TrainStats]]) -> dict[str, Any]:
    stats = step.recovered or []
    return row(
        step.after,
        round=number,
        num_added=sum(step.after.widths.values()) - sum(step.before.widths.values()),
        num_trainings=len(stats),
        train_loss=stats[-1].mean_loss if stats else None,
        duration_s=step.duration_s,
    )


def _wanted(graph: Graph, target: Widths) -> dict[str, int]:
    """Group name -> the width it shall have, once it is known that each group can grow to it."""
    if not target:
        raise EditError('grow: the target names no group; write e.g. {"0": 64}')
    wanted: dict[str, int] = {}
    for name, width in target.items():
        group = graph[name]
        if type(width) is not int or width <= group.width:
            raise EditError(
                f"grow: {name!r} has {group.width} units and shall have {width!r}; give a larger "
                "whole number, or use prune to make it smaller"
            )
        if wanted.setdefault(group.name, width) != width:
            raise EditError(
                f"grow: {name!r} shall have {width} units, but it is of one width with "
                f"{group.name!r}, which another entry gives {wanted[group.name]}; name the group "
                "once"
            )
    check_plan(graph, [Grow(name, width - graph[name].width) for name, width in wanted.items()])
    return wanted


def _path(
    graph: Graph, costs: Costs, target: Budget | dict[str, int], start: Measurement, rounds: int
) -> list[Widths]:
    """The widths after each round."""
    shares = [number / rounds for number in range(1, rounds + 1)]
    if isinstance(target, Budget):
        path: list[Widths] = [_widest(graph, costs, target, start, share) for share in shares]
        if path[-1] == start.widths:
            raise EditError(f"{target!r} adds nothing: no group has room for a unit more. Raise it")
        return path
    return [
        {
            name: width + _whole(graph, name, (target.get(name, width) - width) * share)
            for name, width in start.widths.items()
        }
        for share in shares
    ]


def _whole(graph: Graph, name: str, units: float) -> int:
    """The largest number of units that a group can grow by, no more than asked."""
    step = graph[name].step
    return math.floor(units / step + _ROUNDING) * step


def _widest(
    graph: Graph, costs: Costs, budget: Budget, start: Measurement, share: float
) -> dict[str, int]:
    """The largest even growth within a budget, found by bisection on its fraction."""
    able = [group.name for group in graph if group.exact_growth]
    if not able:
        raise EditError(f"no group of {graph!r} can grow without changing the output")
    limits = budget.limits(start.cost, share)

    def fits(widths: Widths) -> bool:
        cost = costs.at(widths)
        # What is zero stays so; what is new does not, once it has been trained.
        nonzero = start.cost.nonzero + cost.params - start.cost.params
        latency_ms = costs.latency_ms_at(widths) if "latency_ms" in limits else None
        cost = replace(cost, nonzero=nonzero, latency_ms=latency_ms)
        return all(getattr(cost, kind) <= limit for kind, limit in limits.items())

    def grown(fraction: float) -> dict[str, int]:
        added = {name: _whole(graph, name, fraction * start.widths[name]) for name in able}
        return {name: width + added.get(name, 0) for name, width in start.widths.items()}

    if not fits(start.widths):
        raise BudgetError(
            f"grow: {budget!r} is below what the network costs: {start.cost}"
            + fractions_hint(budget)
        )
    low, high = 0.0, 1.0
    while fits(grown(high)):
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(grown(middle)) else (low, middle)
    widths = grown(low)
    # Groups of equal width step at the same fraction, all or none; some of them may still fit.
    for name in sorted(able, key=lambda name: widths[name] / start.widths[name]):
        if fits(wider := {**widths, name: widths[name] + graph[name].step}):
            widths = wider
    return widths
