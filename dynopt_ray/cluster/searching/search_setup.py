"""The parts of a search, which are made and checked before any trial starts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dynopt_ray.cluster.searching.space import Point, Space
from dynopt_ray.cluster.trials import Trial
from dynopt_ray.errors import SpecError
from dynopt_ray.plugins import build

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher


PluginConfig = str | Mapping[str, Any]
"""The name of a plugin, or a mapping with its name and arguments."""

SearcherLike: TypeAlias = "PluginConfig | Searcher"
"""A searcher, or the name and the arguments of one."""

SchedulerLike: TypeAlias = "PluginConfig | TrialScheduler"
"""A scheduler, or the name and the arguments of one."""


def make_searcher(config: SearcherLike, *, seed: int) -> "Searcher":
    """Make a searcher from its name, or from a mapping with its name and arguments.

    A searcher of Ray Tune is returned as it is.

    Raises:
        SpecError, UnknownNameError, PluginError: there is no such searcher, or it refuses its
            arguments.
    """
    from ray.tune.search import Searcher

    made = config if isinstance(config, Searcher) else build("searchers", config, seed=seed)
    if not isinstance(made, Searcher):
        raise SpecError(f"the searcher {config!r:.60} is {made!r:.60}, not a Searcher of Ray Tune")
    return made


def draws(
    searcher: SearcherLike,
    space: Space,
    *,
    num_trials: int | None,
    first: Sequence[Point] = (),
    seed: int = 0,
) -> tuple["Searcher", int]:
    """Make the searcher of a search, and count the trials.

    Args:
        searcher: the searcher, its name, or a mapping with its name and arguments.
        space: the space that it draws from.
        num_trials: total number of trials. None tries every configuration of a grid.
        first: points to try before it draws; see `search`.
        seed: seed of the draws.

    Returns:
        The searcher, and the total number of trials: no built-in searcher tries a configuration
        twice, so there are at most as many as configurations.

    Raises:
        SpecError: the searcher refuses its arguments or cannot try given points first; a point is
            not in the space, or stands for the configuration of an earlier one; there are more
            points than trials; a grid is used for a space with
            ranges; or the number of trials is missing for a searcher that never ends.
        UnknownNameError: there is no searcher of this name.
    """
    from dynopt_ray.cluster.searching.searchers import Grid, OptunaSearcher

    search_algorithm = _beginning_with(make_searcher(searcher, seed=seed), first, space)
    size = None
    if isinstance(search_algorithm, Grid | OptunaSearcher):
        size = search_algorithm.cover(space)
    if num_trials is None and isinstance(search_algorithm, Grid):
        num_trials = size
    if num_trials is None:
        raise SpecError("num_trials is missing; only the searcher 'grid' can do without it")
    num_trials = num_trials if size is None else min(size, num_trials)
    if len(first) > num_trials:
        raise SpecError(
            f"first has {len(first)} points, but num_trials is {num_trials}; give fewer points or "
            "allow more trials"
        )
    return search_algorithm, num_trials


def _beginning_with(searcher: "Searcher", first: Sequence[Point], space: Space) -> "Searcher":
    from dynopt_ray.cluster.searching.searchers import OptunaSearcher

    if isinstance(first, str | Mapping) or not isinstance(first, Sequence):
        raise SpecError(f"first is {first!r:.60}; give a list of mappings such as {{'lr': 0.01}}")
    if not first:
        return searcher
    if not isinstance(searcher, OptunaSearcher):
        raise SpecError(
            f"{type(searcher).__name__} cannot try given points first; leave out first, or use the "
            "searcher 'optuna' or 'random'"
        )
    points: list[Point] = []
    for number, given in enumerate(first):
        try:
            point = space.point(given)
            if space.used(point) in map(space.used, points):
                raise SpecError("an earlier point stands for the same configuration; leave it out")
            points.append(point)
        except SpecError as error:
            raise SpecError(f"first[{number}]: {error}") from error
    return searcher.beginning_with(points)


def make_scheduler(
    config: "SchedulerLike | None", *, num_reports: int, space: Space | None = None
) -> "TrialScheduler":
    """Make a scheduler from its name, or from a mapping with name and arguments.

    A scheduler of Ray Tune is returned as it is. None is the same as "none".

    Args:
        config: what to make.
        num_reports: number of measurements of a complete trial.
        space: the space of the search. None leaves out what depends on it.

    Raises:
        SpecError, UnknownNameError, PluginError: there is no such scheduler, it refuses its
            arguments, or the space lacks what it changes.
    """
    from ray.tune.schedulers import TrialScheduler

    config = "none" if config is None else config
    if isinstance(config, TrialScheduler):
        return config
    made = build("schedulers", config, num_reports=num_reports)
    if not isinstance(made, TrialScheduler):
        raise SpecError(
            f"the scheduler {config!r:.60} is {made!r:.60}, not a TrialScheduler of Ray Tune"
        )
    cover = getattr(made, "cover", None)
    if cover is not None and space is not None:
        cover(space)
    return made


def check_limits(
    *,
    num_trials: int | None,
    num_reports: int,
    cpus_per_trial: float,
    gpus_per_trial: float,
    max_concurrent: int | None,
    cost_weight: float = 0.0,
    max_failures: int = 0,
    time_limit_s: float | None = None,
) -> None:
    """Refuse numbers that are out of range; see `search`.

    Raises:
        ValueError: a number is out of range; the message names the first one.
    """
    counts = {
        "num_trials": num_trials,
        "num_reports": num_reports,
        "max_concurrent": max_concurrent,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    if not cpus_per_trial > 0 or not gpus_per_trial >= 0:
        raise ValueError(
            f"cpus_per_trial is {cpus_per_trial} and gpus_per_trial {gpus_per_trial}; the first "
            "must be above 0 and the second at least 0"
        )
    if gpus_per_trial > 1:
        raise ValueError(
            f"gpus_per_trial is {gpus_per_trial}; a trial trains one network on one GPU, so it can "
            "hold at most 1"
        )
    if max_failures < 0:
        raise ValueError(f"max_failures is {max_failures}; it must be at least 0")
    if time_limit_s is not None and not time_limit_s > 0:
        raise ValueError(f"time_limit_s is {time_limit_s}; it must be above 0")
    if not 0 <= cost_weight < float("inf"):
        raise ValueError(f"cost_weight is {cost_weight}; it must be finite and >= 0")


def check_configurations(trial: Trial, space: Space) -> None:
    """Refuse a space with configurations that the trial cannot run.

    Raises:
        SpecError: the trial's `check` refuses one of a few configurations that cover the space.
    """
    check = getattr(trial, "check", None)
    if check is not None:
        for config in space.probes():
            check(config)
