"""`search` runs trials drawn from a space, in this process or on a cluster."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dynopt_ray.cluster.searching.log import TrialLog
from dynopt_ray.cluster.searching.result import SearchResult
from dynopt_ray.cluster.searching.search_setup import (
    PluginConfig,
    SearchSetup,
    check_configurations,
    check_limits,
    draws,
    make_scheduler,
)
from dynopt_ray.cluster.searching.space import Point, Space, SpaceConfig
from dynopt_ray.cluster.searching.trial import Trial

if TYPE_CHECKING:
    from dynopt_ray.cluster.sessions import Node

_log = logging.getLogger("dynopt_ray.search")


def search(
    trial: Trial,
    space: SpaceConfig | Space,
    *,
    num_trials: int | None = None,
    cost_weight: float = 0.1,
    searcher: PluginConfig = "optuna",
    scheduler: PluginConfig | None = None,
    num_reports: int = 10,
    first: Sequence[Point] = (),
    seed: int = 0,
    cpus_per_trial: float = 1,
    gpus_per_trial: float = 0,
    max_concurrent: int | None = None,
    local: bool = False,
    address: str | None = None,
    on_end: Callable[[TrialLog], None] = lambda _: None,
) -> SearchResult:
    """Find the configuration with the highest utility, and the Pareto front of accuracy and cost.

    Args:
        trial: runs one configuration and yields or returns measurements; see `Trial`. Its data,
            such as a trained network, are sent to the cluster's object store once.
        space: setting -> a list of options, a range {low, high, log}, or a fixed value. A list of
            such spaces is their union. See `Space.parse`.
        num_trials: total number of trials. None tries every configuration of a grid; other
            searchers need a number. No built-in searcher tries a configuration twice, so a search
            ends early, and `SearchResult.note` says so, once all of a finite space were tried.
        cost_weight: λ of utility = accuracy − λ · cost, >= 0.
        searcher: the algorithm that draws configurations: its name, or a mapping with its name
            and arguments.
        scheduler: the algorithm that stops trials early, given in the same way. None lets every
            trial finish.
        num_reports: number of measurements of a complete trial; the scheduler needs it.
        first: points to try before the searcher draws. Each maps names of dimensions to a number
            from a range or to the index of an option, from 0. The names of nested dimensions are
            dotted; in a union they begin with "member". Dimensions that are left out take the
            middle of their range or their first option. Not allowed with a grid. There may be at
            most `num_trials` points.
        seed: seed of the draws.
        cpus_per_trial: CPU cores reserved for each trial, which uses one thread per core.
        gpus_per_trial: GPUs reserved for each trial. With a fraction, trials share a GPU.
        max_concurrent: maximum number of trials at once. Default: as many as the cluster has room
            for.
        local: run the trials in this process, one at a time. Searchers and schedulers belong to
            Ray Tune, so its package is imported, but no cluster is started.
        address: address of a cluster to join if Ray is not running yet. None starts one on this
            machine.
        on_end: called with the log after each trial has ended.

    Raises:
        SpecError: the space, a configuration in it, a point of `first`, or a plugin's arguments
            are wrong. No trial has started.
        ValueError: a number is out of range.
        UnknownNameError: there is no searcher or scheduler of this name.
        ClusterError: no node has room for a trial.
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
    check_limits(
        num_trials=num_trials,
        num_reports=num_reports,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        max_concurrent=max_concurrent,
        cost_weight=cost_weight,
    )
    wanted = num_trials
    search_algorithm, num_trials = draws(
        searcher, parsed, num_trials=num_trials, first=first, seed=seed
    )
    note = ""
    if wanted is not None and num_trials < wanted:
        note = f"the space has only {num_trials} configurations, so {wanted} trials are not run"
        _log.warning("search: %s", note)
    check_configurations(trial, parsed)
    setup = SearchSetup(
        trial=trial,
        space=parsed,
        num_trials=num_trials,
        cost_weight=cost_weight,
        searcher=search_algorithm,
        scheduler=make_scheduler(scheduler, num_reports=num_reports),
        on_end=on_end,
        log=TrialLog(),
    )
    if local:
        from dynopt_ray.cluster.searching.local import run_locally

        return setup.log.result(run_locally(setup), note=note)

    from dynopt_ray.cluster.searching.tune import run_on_cluster
    from dynopt_ray.cluster.sessions import session

    with session(address, task_cpus=cpus_per_trial, task_gpus=gpus_per_trial) as cluster:
        room = sum(_room(node, cpus_per_trial, gpus_per_trial) for node in cluster.nodes)
        kept = run_on_cluster(
            setup,
            resources={"cpu": cpus_per_trial, "gpu": gpus_per_trial},
            max_concurrent=min(room, num_trials, max_concurrent or num_trials),
        )
    return setup.log.result(kept, note=note)


def _room(node: "Node", cpus: float, gpus: float) -> int:
    """Return the number of trials for which a node has room at once."""
    by_cpu = int(node.cpus / cpus)
    return min(by_cpu, int(node.gpus / gpus)) if gpus else by_cpu
