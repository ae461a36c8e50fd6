"""`kind: search`: search pruning and retraining of one trained network."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from torch import nn

from dynopt_ray.cluster import (
    Point,
    PruneTrial,
    Range,
    SearchResult,
    SearchStorage,
    Space,
    TrialLog,
    draws,
    make_scheduler,
    rate_range,
    search,
)
from dynopt_ray.devices import gpus_granted
from dynopt_ray.errors import DynoptError, SpecError
from dynopt_ray.journals import store_at
from dynopt_ray.runs.kind import PreparedRun
from dynopt_ray.runs.kinds.search.spec import SearchSettings, SearchSpec
from dynopt_ray.runs.kinds.search.tables import SearchTables, trial_points
from dynopt_ray.runs.origin import (
    Curves,
    Origin,
    figures,
    keep_network,
    prepare_origin,
    with_utility,
)
from dynopt_ray.runs.report import by_setting
from dynopt_ray.runs.run import Run
from dynopt_ray.structure import Cost
from dynopt_ray.tasks import Task
from dynopt_ray.training import loaded_network, network_bytes

_RANGE_TEST = "range test"


def prepare(spec: SearchSpec) -> PreparedRun:
    """Prepare a search.

    Raises:
        SpecError: the searcher or the scheduler refuses its arguments, the number of trials is
            missing, or the search cannot begin with a range test.
        DynoptError: the task or the starting network is missing or wrong.
    """
    check_plugins(spec.search, spec.space)
    return partial(_run, spec, prepare_origin(spec))


def _run(spec: SearchSpec, origin: Origin, run: Run) -> None:
    curves = Curves()
    model = origin.model(run, curves)
    before = figures("before", origin.task, model)
    result = run_search(
        run,
        origin.task,
        model,
        settings=spec.search,
        cost_weight=spec.cost_weight,
        cost=spec.cost,
        space=spec.space,
        optimizer=spec.optimizer,
        seed=spec.seed,
        device=spec.device,
        deterministic=spec.deterministic,
    )
    assert result.network is not None  # every finished pruning trial has one
    winner = loaded_network(origin.task, result.network)
    after = figures(f"trial {result.best.trial}", origin.task, winner)
    rows = with_utility([before, after], spec.cost_weight, spec.cost)
    run.outcome("summary", "Before and after the search", pd.DataFrame(rows))
    compared = by_setting(result.trials)
    if compared is not None:
        run.outcome("settings", "Settings, mean over seeds", compared)
    run.directory.write_results(result.trials)
    run.directory.write_table("trials", result.history)
    run.directory.write_table("front", front(result))
    start = {"series": "start", "name": "start", "cost": 1.0, "accuracy": before["accuracy"]}
    chart = pd.concat([pd.DataFrame([start]), trial_points(result.trials)])
    run.directory.write_table("pareto", chart)
    add_best_curve(curves, result)
    curves.write(run)
    keep_network(run, winner, task=spec.task, config=result.best.config)


def front(result: SearchResult) -> pd.DataFrame:
    """Return the trials on the Pareto front, without empty columns, status and step."""
    without_empty = result.pareto.replace("", None).dropna(axis="columns", how="all")
    return without_empty.drop(columns=["status", "step"])


def add_best_curve(curves: Curves, result: SearchResult) -> None:
    """Add the retraining of the best trial."""
    best = result.history[result.history["trial"] == result.best.trial]
    for _, row in best.iterrows():
        curves.add(
            f"trial {result.best.trial}",
            int(row["step"]),
            **{name: float(row[name]) for name in ("loss", "lr", "validation_loss", "accuracy")},
        )


def _lead(result: SearchResult) -> str:
    """Say which trial wins, and why if it is not the one with the highest utility."""
    best, highest = result.best, result.highest
    if best.trial == highest.trial:
        return "best "
    return (
        f"trial {best.trial} is the cheapest within one standard error of trial {highest.trial} "
        f"(utility {highest.utility:.4f}): "
    )


def check_plugins(settings: SearchSettings, space: Space) -> None:
    """Make the searcher and the scheduler once, to check their arguments.

    Raises:
        SpecError: one of them refuses its arguments, the number of trials is missing, or the search
            should begin at the rate of a range test but cannot.
    """
    if settings.find_rate and rate_range(space) is None:
        raise SpecError(
            "search.find_rate: the space has no range of learning rates to begin in; give lr one, "
            "e.g. lr: {name: cosine, initial: {low: 1e-4, high: 0.1, log: true}}"
        )
    # The check is the same for every first point.
    first: list[Point] = [{}] if settings.find_rate else []
    draws(settings.searcher, space, num_trials=settings.num_trials, first=first)
    make_scheduler(settings.scheduler, num_reports=settings.num_reports, space=space)


def _first(run: Run, trial: PruneTrial, space: Space) -> list[Point]:
    """Return the point to try first: the middle of a space, at the rate of a range test.

    The list is empty if the test finds no rate.
    """
    name = rate_range(space)
    assert name is not None
    rates = space.dimensions[name]
    assert isinstance(rates, Range)
    point = space.point({name: rates.low})
    kept = run.parts.result(_RANGE_TEST)
    if kept is not None:
        return list(kept["first"])
    first: list[Point] = []
    with run.progress.stage("range test") as stage:
        try:
            found = trial.find_rate(space.decode(point))
        except DynoptError as error:  # a failed test, like a failed trial, does not end the search
            stage.result(f"no rate found, so the searcher chooses the first trial: {error}")
        else:
            stage.result(f"the search begins at the rate {found:.3g}")
            first = [{name: min(max(found, rates.low), rates.high)}]
    run.parts.finish(_RANGE_TEST, {"first": first})
    return first


def run_search(
    run: Run,
    task: Task,
    model: nn.Module,
    *,
    settings: SearchSettings,
    cost_weight: float,
    cost: str,
    space: Space,
    optimizer: str | Mapping[str, Any],
    seed: int,
    device: str,
    deterministic: bool,
    start: Cost | None = None,
) -> SearchResult:
    """Search from a trained network, and show the progress.

    Args:
        run: the run that the search is part of.
        task: the task that the network has learned.
        model: the network.
        settings: how to search.
        cost_weight: λ of utility.
        cost: the cost that utility charges for.
        space: the configurations to search.
        optimizer: the optimizer of the retraining.
        seed: seed of the draws and of the training.
        device: the device of trials.
        deterministic: whether trials give the same bits on a GPU for the same seed.
        start: the cost that costs are relative to; None is that of this network.
    """
    trial = PruneTrial(
        task,
        network_bytes(model),
        retrain_steps=settings.retrain_steps,
        num_reports=settings.num_reports,
        optimizer=optimizer,
        cost=cost,
        start=start,
        device=device,
        seed=seed,
    )
    with gpus_granted(settings.gpus_per_trial > 0):
        first = _first(run, trial, space) if settings.find_rate else []
    _, num_trials = draws(settings.searcher, space, num_trials=settings.num_trials)
    with run.progress.stage("search", num_trials) as stage:
        tables = SearchTables(run.directory)

        def on_end(log: TrialLog) -> None:
            best = log.best_so_far
            stage.advance(note=f"best utility {best['utility']:.4f}" if best else "")
            tables.update(log)

        result = search(
            trial,
            space,
            **settings.model_dump(exclude={"retrain_steps", "find_rate"}),
            first=first,
            deterministic=deterministic,
            cost_weight=cost_weight,
            seed=seed,
            address=run.address,
            storage=SearchStorage(run.directory.journal, store_at(str(run.directory.path))),
            on_end=on_end,
        )
        counts = result.trials["status"].value_counts()
        ended = ", ".join(f"{count} {status}" for status, count in counts.items())
        best = result.best
        stage.result(
            f"{ended}; {_lead(result)}utility {best.utility:.4f} (accuracy {best.accuracy:.4f}, "
            f"cost {best.cost:.3f})" + (f"; {result.note}" if result.note else "")
        )
    return result
