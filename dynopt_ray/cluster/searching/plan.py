"""What a search is made of, checked before anything starts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynopt_ray.cluster.searching.log import TrialLog
from dynopt_ray.cluster.searching.space import Flat, Space
from dynopt_ray.cluster.searching.trial import Trial
from dynopt_ray.errors import SpecError
from dynopt_ray.plugins import build

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher


PluginConfig = str | Mapping[str, Any]
"""A plugin by name, or a mapping of its name and its arguments."""


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """What a search is made of, wherever its trials run.

    Attributes:
        trial: what runs.
        space: what it may be given.
        num_trials: trials in all.
        cost_weight: λ.
        searcher: draws configurations.
        scheduler: stops trials early, or None.
        on_end: called with the log whenever a trial has ended.
        log: collects what trials say.
    """

    trial: Trial
    space: Space
    num_trials: int
    cost_weight: float
    searcher: "Searcher"
    scheduler: "TrialScheduler | None"
    on_end: Callable[["TrialLog"], None]
    log: "TrialLog"


def make_searcher(config: PluginConfig, *, seed: int) -> "Searcher":
    """What draws configurations, by name.

    Raises:
        SpecError, UnknownNameError, PluginError: there is none, or it refuses its arguments.
    """
    made: Searcher = build("searchers", config, seed=seed)
    return made


def draws(
    searcher: PluginConfig,
    space: Space,
    *,
    num_trials: int | None,
    first: Sequence[Flat] = (),
    seed: int = 0,
) -> tuple["Searcher", int]:
    """What draws the configurations of a search, and how many there will be.

    Args:
        searcher: its name, or a mapping of its name and arguments.
        space: what it draws from.
        num_trials: trials in all; None is all configurations of a grid.
        first: points to try before it draws.
        seed: seed of the draws.

    Raises:
        SpecError: the searcher refuses its arguments or cannot begin with given points; a point
            is not in the space; a grid of a space with ranges; or no number of trials for a
            searcher that never ends.
        UnknownNameError: no searcher of this name.
    """
    from dynopt_ray.cluster.searching.searchers import Grid

    drawing = _beginning_with(make_searcher(searcher, seed=seed), first, space)
    if isinstance(drawing, Grid):
        size = drawing.cover(space)
        num_trials = size if num_trials is None else min(size, num_trials)
    if num_trials is None:
        raise SpecError("num_trials is missing; only the searcher 'grid' comes to an end by itself")
    if len(first) > num_trials:
        raise SpecError(f"{len(first)} points to try first, but only {num_trials} trials")
    return drawing, num_trials


def _beginning_with(searcher: "Searcher", first: Sequence[Flat], space: Space) -> "Searcher":
    from dynopt_ray.cluster.searching.searchers import Sampled

    if isinstance(first, str | Mapping) or not isinstance(first, Sequence):
        raise SpecError(f"first is {first!r:.60}; give a list of mappings such as {{'lr': 0.01}}")
    if not first:
        return searcher
    if not isinstance(searcher, Sampled):
        raise SpecError(
            f"{type(searcher).__name__} draws by itself and takes nothing to try first; use the "
            "searcher 'optuna' or 'random'"
        )
    points = []
    for number, some in enumerate(first):
        try:
            points.append(space.point(some))
        except SpecError as error:
            raise SpecError(f"first, number {number}: {error}") from error
    return searcher.beginning_with(points)


def make_scheduler(config: PluginConfig | None, *, num_reports: int) -> "TrialScheduler | None":
    """What stops trials early, by name; None for None.

    Raises:
        SpecError, UnknownNameError, PluginError: there is none, or it refuses its arguments.
    """
    if config is None:
        return None
    made: TrialScheduler = build("schedulers", config, num_reports=num_reports)
    return made


def check_limits(
    *,
    num_trials: int | None,
    num_reports: int,
    cpus_per_trial: float,
    gpus_per_trial: float,
    max_concurrent: int | None,
    cost_weight: float = 0.0,
) -> None:
    """Refuse numbers out of their ranges; see `search`.

    Raises:
        ValueError: names the first of them.
    """
    counts = {
        "num_trials": num_trials,
        "num_reports": num_reports,
        "max_concurrent": max_concurrent,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    if not cpus_per_trial > 0 or gpus_per_trial < 0:
        raise ValueError(
            f"cpus_per_trial is {cpus_per_trial} and gpus_per_trial {gpus_per_trial}; the first "
            "must be above 0 and the second at least 0"
        )
    if not 0 <= cost_weight < float("inf"):
        raise ValueError(f"cost_weight is {cost_weight}; it must be finite and >= 0")


def check_configurations(trial: Trial, space: Space) -> None:
    """Refuse a space with configurations that the trial cannot run.

    Raises:
        SpecError: the trial's own `check` refuses one.
    """
    check = getattr(trial, "check", None)
    if check is not None:
        for config in space.probes():
            check(config)
