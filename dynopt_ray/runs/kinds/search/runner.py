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
    Space,
    check_pack,
    rate_range,
)
from dynopt_ray.devices import gpus_granted
from dynopt_ray.errors import DynoptError
from dynopt_ray.policies import CostConfig
from dynopt_ray.runs.kind import PreparedRun
from dynopt_ray.runs.kinds.search.own_trial import prepare_own
from dynopt_ray.runs.kinds.search.searched import (
    check_plugins,
    check_warm_start,
    searched,
    write_tables,
)
from dynopt_ray.runs.kinds.search.spec import OwnTrialSpec, SearchSettings, SearchSpec
from dynopt_ray.runs.kinds.search.tables import trial_points
from dynopt_ray.runs.kinds.search.winner import keep_winner
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


def prepare(spec: SearchSpec | OwnTrialSpec) -> PreparedRun:
    """Prepare a search.

    Raises:
        SpecError: the searcher or the scheduler refuses its arguments, the number of trials is
            missing, the search cannot begin with a range test, or trials cannot be put into packs.
        DynoptError: the task or the starting network is missing or wrong.
    """
    if isinstance(spec, OwnTrialSpec):
        return prepare_own(spec)
    check_plugins(spec.search, spec.space)
    origin = prepare_origin(spec)
    check_packs(spec.search, spec.space, origin.task, spec.optimizer)
    return partial(_run, spec, origin)


def check_packs(
    settings: SearchSettings, space: Space, task: Task, optimizer: str | Mapping[str, Any]
) -> None:
    """Refuse packs that cannot be, before any training.

    Raises:
        SpecError: the trials cannot be trained together.
    """
    # It follows from the structure of the network, which therefore need not be trained yet.
    trial = PruneTrial(task, b"", retrain_steps=settings.retrain_steps, optimizer=optimizer)
    check_pack(trial, space, settings.pack, order=settings.order)


def _run(spec: SearchSpec, origin: Origin, run: Run) -> None:
    check_warm_start(run, spec.search, spec.space, spec.cost_weight)
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
    )
    assert result.network is not None  # every finished pruning trial has one
    winner = loaded_network(origin.task, result.network)
    after = figures(f"trial {result.best.trial}", origin.task, winner)
    rows = with_utility([before, after], spec.cost_weight, spec.cost)
    run.outcome("summary", "Before and after the search", pd.DataFrame(rows))
    compared = by_setting(result.trials)
    if compared is not None:
        run.outcome("settings", "Settings, mean over seeds", compared)
    write_tables(run, result)
    start = {"series": "start", "name": "start", "cost": 1.0, "accuracy": before["accuracy"]}
    chart = pd.concat([pd.DataFrame([start]), trial_points(result.trials)])
    run.directory.write_table("pareto", chart)
    add_best_curve(curves, result)
    curves.write(run)
    keep_network(run, winner, task=spec.task, config=result.best.config)
    keep_winner(run, spec, result.best.config)


def add_best_curve(curves: Curves, result: SearchResult) -> None:
    """Add the retraining of the best trial."""
    best = result.history[result.history["trial"] == result.best.trial]
    for _, row in best.iterrows():
        curves.add(
            f"trial {result.best.trial}",
            int(row["step"]),
            **{name: float(row[name]) for name in ("loss", "lr", "validation_loss", "accuracy")},
        )


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
    cost: CostConfig,
    space: Space,
    optimizer: str | Mapping[str, Any],
    seed: int,
    device: str,
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
    return searched(
        run,
        trial,
        space,
        settings=settings,
        cost_weight=cost_weight,
        seed=seed,
        first=first,
    )
