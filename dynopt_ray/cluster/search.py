"""Search over trials: random or by Optuna, stopped early by ASHA, here or on a cluster."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynopt_ray.cluster.space import Flat, Space
from dynopt_ray.cluster.trials import SearchPlan, SearchResult, Trial, TrialLog
from dynopt_ray.errors import SpecError
from dynopt_ray.plugins import build

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

    from dynopt_ray.cluster.preflight import Node

PluginConfig = str | Mapping[str, Any]


def search(
    trial: Trial,
    space: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    num_trials: int | None = None,
    cost_weight: float = 0.1,
    searcher: PluginConfig = "random",
    scheduler: PluginConfig | None = None,
    num_reports: int = 10,
    first: Sequence[Flat] = (),
    seed: int = 0,
    cpus_per_trial: float = 1,
    gpus_per_trial: float = 0,
    max_concurrent: int | None = None,
    local: bool = False,
    address: str | None = None,
    on_end: Callable[[TrialLog], None] = lambda _: None,
) -> SearchResult:
    """Find the configuration of the highest utility, and the front of accuracy against cost.

    Args:
        trial: what is searched over; see `Trial`. What it holds (data, a trained network) goes
            to the cluster's object store once.
        space: what it may be given: lists are choices, {low, high, log} ranges, the rest fixed;
            a list of such spaces is their union.
        num_trials: trials in all. None tries all that a grid has.
        cost_weight: λ of utility = accuracy − λ · cost, >= 0.
        searcher: a name, or a mapping of it and its arguments: what draws configurations.
        scheduler: the same: what stops trials early. None lets each finish.
        num_reports: measurements that a whole trial makes, for the scheduler.
        first: what to try before the searcher draws: dimension name (dotted where mappings are
            nested, beginning with "member" in a union) -> a number, or the number of an option,
            from 0. What is left out is in the middle of its range, or the first option. Not with
            a grid, and no more than there are trials.
        seed: of the draws.
        cpus_per_trial: CPU cores that each trial holds; one thread per core.
        gpus_per_trial: GPUs that each trial holds; fractions share one.
        max_concurrent: trials at once; None is as many as the cluster has room for.
        local: run them here, one after the other. Searchers and schedulers are Ray Tune's, so
            its package is imported, but no cluster is started.
        address: a cluster to join when Ray is not running yet; None starts one here.
        on_end: called with the log whenever a trial has ended.

    Raises:
        SpecError: the space, a configuration in it, or a plugin's arguments are wrong. Nothing
            has started.
        UnknownNameError: no searcher or scheduler of this name.
        ClusterError: no node can hold a trial.
        SearchError: no trial finished.

    Example:
        >>> from dynopt_ray.cluster import Measurement, search
        >>> def trial(config):
        ...     x = config["x"]
        ...     yield Measurement(step=1, accuracy=1 - (x - 0.3) ** 2, cost=0.0, final=True)
        >>> result = search(trial, {"x": {"low": 0.0, "high": 1.0}}, num_trials=20, local=True)
        >>> abs(result.best.config["x"] - 0.3) < 0.1
        True
    """
    parsed = Space.parse(space)
    drawing = beginning_with(make_searcher(searcher, seed=seed), first, parsed)
    num_trials = count_trials(drawing, parsed, num_trials)
    if len(first) > num_trials:
        raise SpecError(f"{len(first)} points to try first, but only {num_trials} trials")
    _check(trial, parsed, num_trials, cost_weight, cpus_per_trial, gpus_per_trial)
    plan = SearchPlan(
        trial=trial,
        space=parsed,
        num_trials=num_trials,
        cost_weight=cost_weight,
        searcher=drawing,
        scheduler=make_scheduler(scheduler, num_reports=num_reports),
        on_end=on_end,
        log=TrialLog(),
    )
    if local:
        from dynopt_ray.cluster.local_search import run_locally

        return plan.log.result(run_locally(plan))

    from dynopt_ray.cluster.session import session
    from dynopt_ray.cluster.tune_search import run_on_cluster

    with session(address, task_cpus=cpus_per_trial, task_gpus=gpus_per_trial) as cluster:
        room = sum(_room(node, cpus_per_trial, gpus_per_trial) for node in cluster.nodes)
        kept = run_on_cluster(
            plan,
            resources={"cpu": cpus_per_trial, "gpu": gpus_per_trial},
            max_concurrent=min(room, num_trials, max_concurrent or num_trials),
        )
    return plan.log.result(kept)


def make_searcher(config: PluginConfig, *, seed: int) -> "Searcher":
    """What draws configurations, by name.

    Raises:
        SpecError, UnknownNameError, PluginError: there is none, or it refuses its arguments.
    """
    made: Searcher = build("searchers", config, seed=seed)
    return made


def beginning_with(searcher: "Searcher", first: Sequence[Flat], space: Space) -> "Searcher":
    """A searcher that tries some points before it draws.

    Raises:
        SpecError: it cannot, or a point is not in the space.
    """
    from dynopt_ray.cluster.searchers import Sampled

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


def count_trials(searcher: "Searcher", space: Space, num_trials: int | None) -> int:
    """How many trials there will be: all of a grid, which is told its space by this, or fewer.

    Raises:
        SpecError: a grid of a space with ranges, or no number for a searcher without an end.
    """
    from dynopt_ray.cluster.searchers import Grid

    if isinstance(searcher, Grid):
        size = searcher.cover(space)
        return size if num_trials is None else min(size, num_trials)
    if num_trials is None:
        raise SpecError("num_trials is missing; only the searcher 'grid' comes to an end by itself")
    return num_trials


def make_scheduler(config: PluginConfig | None, *, num_reports: int) -> "TrialScheduler | None":
    """What stops trials early, by name; None for None.

    Raises:
        SpecError, UnknownNameError, PluginError: there is none, or it refuses its arguments.
    """
    if config is None:
        return None
    made: TrialScheduler = build("schedulers", config, num_reports=num_reports)
    return made


def _check(
    trial: Trial,
    space: Space,
    num_trials: int,
    cost_weight: float,
    cpus_per_trial: float,
    gpus_per_trial: float,
) -> None:
    if num_trials < 1:
        raise ValueError(f"num_trials is {num_trials}; it must be at least 1")
    if not cpus_per_trial > 0 or gpus_per_trial < 0:
        raise ValueError(
            f"cpus_per_trial is {cpus_per_trial} and gpus_per_trial {gpus_per_trial}; the first "
            "must be above 0 and the second at least 0"
        )
    if not 0 <= cost_weight < float("inf"):
        raise ValueError(f"cost_weight is {cost_weight}; it must be finite and >= 0")
    check = getattr(trial, "check", None)
    if check is not None:
        for config in space.probes():
            check(config)


def _room(node: "Node", cpus: float, gpus: float) -> int:
    """How many trials a node holds at once."""
    by_cpu = int(node.cpus / cpus)
    return min(by_cpu, int(node.gpus / gpus)) if gpus else by_cpu
