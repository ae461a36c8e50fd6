"""Run the search of a run, show its progress, and write its tables."""

from collections.abc import Sequence

import pandas as pd

from dynopt_ray.cluster import (
    Point,
    SearchResult,
    SearchStorage,
    Space,
    Trial,
    TrialLog,
    TrialStatus,
    busy_share,
    draws,
    earlier_trials,
    make_scheduler,
    rate_range,
    search,
    slot_use,
)
from dynopt_ray.errors import SpecError
from dynopt_ray.journals import store_at
from dynopt_ray.runs.kinds.search.spec import SearchOptions, SearchSettings
from dynopt_ray.runs.kinds.search.tables import SearchTables
from dynopt_ray.runs.run import Run

_SHOWN: tuple[TrialStatus, ...] = ("running", "waiting", "finished", "stopped", "failed")


def check_plugins(settings: SearchOptions, space: Space) -> None:
    """Make the searcher and the scheduler once, to check their arguments.

    Raises:
        SpecError: one of them refuses its arguments, the number of trials is missing, or the search
            should begin at the rate of a range test but cannot.
    """
    find_rate = isinstance(settings, SearchSettings) and settings.find_rate
    if find_rate and rate_range(space) is None:
        raise SpecError(
            "search.find_rate: the space has no range of learning rates to begin in; give lr one, "
            "e.g. lr: {name: cosine, initial: {low: 1e-4, high: 0.1, log: true}}"
        )
    # The check is the same for every first point.
    first: list[Point] = [{}] if find_rate else []
    draws(settings.searcher, space, num_trials=settings.num_trials, first=first)
    make_scheduler(settings.scheduler, num_reports=settings.num_reports, space=space)


def searched(
    run: Run,
    trial: Trial,
    space: Space,
    *,
    settings: SearchOptions,
    cost_weight: float,
    seed: int,
    first: Sequence[Point] = (),
) -> SearchResult:
    """Search, and show the progress.

    Args:
        run: the run that the search is part of.
        trial: runs a configuration.
        space: the configurations to search.
        settings: how to search.
        cost_weight: λ of utility.
        seed: seed of the draws.
        first: points to try first.
    """
    _, num_trials = draws(settings.searcher, space, num_trials=settings.num_trials)
    with run.progress.stage("search", num_trials) as stage:
        tables = SearchTables(run.directory)

        def on_end(log: TrialLog) -> None:
            stage.advance(note=_state(log))
            tables.update(log)

        result = search(
            trial,
            space,
            **{name: getattr(settings, name) for name in SearchOptions.model_fields},
            first=first,
            deterministic=run.deterministic,
            cost_weight=cost_weight,
            seed=seed,
            address=run.address,
            storage=SearchStorage(run.directory.journal, store_at(str(run.directory.path))),
            on_end=on_end,
        )
        busy = busy_share(_written_use(run))
        counts = result.trials["status"].value_counts()
        ended = ", ".join(f"{count} {status}" for status, count in counts.items())
        best = result.best
        stage.result(
            f"{ended}; {_lead(result)}utility {best.utility:.4f} (accuracy {best.accuracy:.4f}, "
            f"cost {best.cost:.3f})"
            + (f"; slots busy {busy:.0%}" if busy is not None and not settings.local else "")
            + (f"; {result.note}" if result.note else "")
        )
    return result


def check_warm_start(run: Run, settings: SearchOptions, space: Space, cost_weight: float) -> None:
    """Read the earlier searches that a new one begins with, before time is spent on training.

    Raises:
        SpecError: there is no such search, or none of its trials is in the space.
    """
    if not any(record.kind == "search" for record in run.directory.journal.records):
        earlier_trials(settings.warm_start, space, cost_weight=cost_weight)


def write_tables(run: Run, result: SearchResult) -> None:
    """Write the results of a search, all its measurements, and the Pareto front."""
    run.directory.write_results(result.trials)
    run.directory.write_table("trials", result.history)
    run.directory.write_table("front", front(result))


def _written_use(run: Run) -> pd.DataFrame:
    """Write how many slots ran a trial over time, and return the table."""
    use = slot_use(run.directory.records)
    run.directory.write_table("slots", use)
    return use


def _state(log: TrialLog) -> str:
    """Say how many trials are in which state, and what is best so far."""
    statuses = log.statuses()
    parts = [f"{statuses[name]} {name}" for name in _SHOWN if statuses[name]]
    if log.num_losses:
        parts.append(f"{log.num_losses} retried")
    best = log.best_so_far
    return ", ".join([*parts, f"best utility {best['utility']:.4f}"] if best else parts)


def front(result: SearchResult) -> pd.DataFrame:
    """Return the trials on the Pareto front, without empty columns, status and step."""
    without_empty = result.pareto.replace("", None).dropna(axis="columns", how="all")
    return without_empty.drop(columns=["status", "step"])


def _lead(result: SearchResult) -> str:
    """Say which trial wins, and why if it is not the one with the highest utility."""
    best, highest = result.best, result.highest
    if best.trial == highest.trial:
        return "best "
    return (
        f"trial {best.trial} is the cheapest within one standard error of trial {highest.trial} "
        f"(utility {highest.utility:.4f}): "
    )
