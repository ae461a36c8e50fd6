"""Search over trials: random or by Optuna, stopped early by ASHA, here or on a cluster."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dynopt_ray.cluster.searching.log import TrialLog
from dynopt_ray.cluster.searching.plan import (
    PluginConfig,
    SearchPlan,
    check_configurations,
    check_limits,
    draws,
    make_scheduler,
)
from dynopt_ray.cluster.searching.result import SearchResult
from dynopt_ray.cluster.searching.space import Flat, Space, SpaceConfig
from dynopt_ray.cluster.searching.trial import Trial

if TYPE_CHECKING:
    from dynopt_ray.cluster.sessions import Node


def search(
    trial: Trial,
    space: SpaceConfig | Space,
    *,
    num_trials: int | None = None,
    cost_weight: float = 0.1,
    searcher: PluginConfig = "optuna",
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
    check_limits(
        num_trials=num_trials,
        num_reports=num_reports,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        max_concurrent=max_concurrent,
        cost_weight=cost_weight,
    )
    drawing, num_trials = draws(searcher, parsed, num_trials=num_trials, first=first, seed=seed)
    check_configurations(trial, parsed)
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
        from dynopt_ray.cluster.searching.local import run_locally

        return plan.log.result(run_locally(plan))

    from dynopt_ray.cluster.searching.tune import run_on_cluster
    from dynopt_ray.cluster.sessions import session

    with session(address, task_cpus=cpus_per_trial, task_gpus=gpus_per_trial) as cluster:
        room = sum(_room(node, cpus_per_trial, gpus_per_trial) for node in cluster.nodes)
        kept = run_on_cluster(
            plan,
            resources={"cpu": cpus_per_trial, "gpu": gpus_per_trial},
            max_concurrent=min(room, num_trials, max_concurrent or num_trials),
        )
    return plan.log.result(kept)


def _room(node: "Node", cpus: float, gpus: float) -> int:
    """How many trials a node holds at once."""
    by_cpu = int(node.cpus / cpus)
    return min(by_cpu, int(node.gpus / gpus)) if gpus else by_cpu
