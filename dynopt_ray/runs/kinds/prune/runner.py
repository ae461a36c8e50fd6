"""`kind: prune`: prune one network with the article's loop."""

from functools import partial

import pandas as pd
import torch
from torch import nn

from dynopt_ray.criteria import unit_scores, weight_scores
from dynopt_ray.errors import DynoptError, SpecError
from dynopt_ray.runs.kind import PreparedRun
from dynopt_ray.runs.kinds.prune.spec import PruneSettings, PruneSpec, TargetSpec, prune_schedule
from dynopt_ray.runs.origin import Curves, Origin, as_budget, figures, keep_network, prepare_origin
from dynopt_ray.runs.run import Run
from dynopt_ray.runs.spec import Phase
from dynopt_ray.training import (
    Fraction,
    PruneResult,
    Rate,
    Retraining,
    Target,
    Threshold,
    least_widths,
    make_optimizer,
    make_rate,
    make_recovery,
    prune,
    sample_batches,
    traced,
)

_LR_POINTS = 50
# Number of validation losses that an LR controller observes in each retraining.
_NUM_CHECKS = 10


def prepare(spec: PruneSpec) -> PreparedRun:
    """Prepare to prune.

    Raises:
        DynoptError: the task or the starting network is missing or wrong.
        SpecError: the criterion cannot score this network at this granularity, or an entry of
            `min_widths` does not fit it.
    """
    origin = prepare_origin(spec)
    _check_network(spec, origin)
    return partial(_run, spec, origin)


def _check_network(spec: PruneSpec, origin: Origin) -> None:
    """Check the settings on an untrained network, before time is spent on its training.

    Two cases are left to `prune`. For N:M patterns, only `prune` knows which weights need scores.
    A loaded network needs no training, so `prune` checks the settings on it at once.
    """
    settings, task = spec.prune, origin.task
    score = {"unit": unit_scores, "weight": weight_scores}.get(settings.granularity)
    if score is None or origin.network is not None:
        return
    graph = traced(task, task.new_model(seed=spec.seed))
    batches = sample_batches(task, 1, torch.Generator().manual_seed(spec.seed))
    try:
        score(graph, settings.criterion, batches, loss=task.loss)
    except (DynoptError, TypeError) as error:
        raise SpecError(f"prune.criterion: {error}") from error
    try:
        least_widths(graph, start_widths=graph.widths, min_widths=settings.min_widths or {})
    except DynoptError as error:
        raise SpecError(f"prune.min_widths: {error}") from error


def _run(spec: PruneSpec, origin: Origin, run: Run) -> None:
    curves = Curves()
    model = origin.model(run, curves)
    before = figures("before", origin.task, model)
    with run.progress.stage("prune") as stage:
        result = _pruned(spec, origin, model)
        start, end = result.before, result.after
        stage.result(
            f"accuracy {start.validation.metric:.4f} → {end.validation.metric:.4f}, "
            f"{start.cost.nonzero:,} → {end.cost.nonzero:,} non-zero weights"
        )
    after = figures("after", origin.task, model)
    run.directory.write_results(result.history)
    rows = [_with_error(row) for row in (before, after)]
    run.outcome("summary", "Before and after pruning", pd.DataFrame(rows))
    run.directory.write_table("pareto", _points(result))
    if any(receipt.widths for receipt in result.receipts):
        run.directory.write_table("widths", _widths(result))
    if spec.prune.retrain is not None:
        _add_retraining(curves, spec.prune.retrain, result)
    curves.write(run)
    keep_network(run, model, task=spec.task)


def _pruned(spec: PruneSpec, origin: Origin, model: nn.Module) -> PruneResult:
    settings, retrain = spec.prune, spec.prune.retrain
    rate = make_rate(retrain.lr, retrain.num_steps) if retrain else None
    return prune(
        traced(origin.task, model),
        origin.task,
        target=None if settings.target is None else _target(settings.target),
        criterion=settings.criterion,
        granularity=settings.granularity,
        scope=settings.scope,
        rounds=settings.rounds,
        schedule=prune_schedule(settings.schedule, settings.rounds),
        min_widths=settings.min_widths,
        retrain=_retraining(settings, retrain.num_steps, rate) if retrain and rate else None,
        compensate=settings.compensate,
        recovery=make_recovery(settings.recovery),
        optimizer=make_optimizer(spec.optimizer, model, lr=rate.initial) if rate else None,
        seed=spec.seed,
    )


def _retraining(settings: PruneSettings, num_steps: int, rate: Rate) -> Retraining:
    teacher = settings.distillation
    if rate.controller is None:
        return Retraining(num_steps, rate.schedule, distillation=teacher)
    num_checks = min(num_steps, _NUM_CHECKS)
    return Retraining(
        num_steps, controller=rate.controller, num_checks=num_checks, distillation=teacher
    )


def _target(target: TargetSpec) -> Target:
    if target.remove is not None:
        return Fraction(remove=target.remove)
    if target.threshold is not None:
        return Threshold(target.threshold)
    budget = as_budget(target.budget)
    assert budget is not None  # the spec has one of the three
    return budget


def _with_error(row: dict[str, object]) -> dict[str, object]:
    """Add the error on validation data, because the article compares errors."""
    accuracy = row["accuracy"]
    assert isinstance(accuracy, float)
    return {"network": row["network"], "error": 1 - accuracy, **row}


def _points(result: PruneResult) -> pd.DataFrame:
    """Return accuracy and cost before pruning, right after each cut, and at each round's end."""
    history = result.history
    cost = history["nonzero"] / history["nonzero"].iloc[0]
    parts = [
        pd.DataFrame({"series": "before", "cost": cost[:1], "accuracy": history["metric"][:1]}),
        pd.DataFrame({"series": "after the cut", "cost": cost, "accuracy": history["cut_metric"]}),
        pd.DataFrame({"series": "end of round", "cost": cost, "accuracy": history["metric"]}),
    ]
    parts = [part.assign(name=[f"round {n}" for n in part.index]) for part in parts]
    points = pd.concat([parts[0], *(part.iloc[1:] for part in parts[1:])])
    return points.dropna(subset=["accuracy"])


def _widths(result: PruneResult) -> pd.DataFrame:
    widths = result.history.filter(like="width/").rename(columns=lambda n: n.removeprefix("width/"))
    widths.insert(0, "round", result.history["round"])
    return widths


def _add_retraining(curves: Curves, phase: Phase, result: PruneResult) -> None:
    """Add the learning rates of each round's retraining, its mean loss and its final accuracy."""
    schedule = make_rate(phase.lr, phase.num_steps).schedule
    every = max(1, phase.num_steps // _LR_POINTS)
    for number, (_, row) in enumerate(result.history.iloc[1:].iterrows()):
        start = number * phase.num_steps
        if schedule is not None:
            for step in range(0, phase.num_steps, every):
                curves.add("retrain", start + step, lr=schedule(step))
        end = start + phase.num_steps
        curves.add("retrain", end, loss=row["train_loss"], accuracy=row["metric"])
