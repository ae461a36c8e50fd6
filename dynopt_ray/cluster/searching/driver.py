"""`search` runs trials drawn from a space, in this process or on a cluster."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from dynopt_ray.cluster.searching.choice import Winner
from dynopt_ray.cluster.searching.earlier import (
    EarlierTrial,
    check_learns,
    earlier_trials,
    known_trials,
)
from dynopt_ray.cluster.searching.execution import SearchPlan, run_plan
from dynopt_ray.cluster.searching.log import TrialLog
from dynopt_ray.cluster.searching.objectives import Objectives, SearchObjective
from dynopt_ray.cluster.searching.pack_size import PackSize, check_pack
from dynopt_ray.cluster.searching.result import SearchResult
from dynopt_ray.cluster.searching.search_setup import (
    SchedulerLike,
    SearcherLike,
    check_configurations,
    check_limits,
    draws,
    make_scheduler,
)
from dynopt_ray.cluster.searching.space import Point, Space, SpaceConfig
from dynopt_ray.cluster.searching.storage import Directory, SearchStorage, local_directory, opened
from dynopt_ray.cluster.sessions import ClusterNeed
from dynopt_ray.cluster.tracking import TrackerLike, make_trackers
from dynopt_ray.cluster.trials import LoopConfig, PackableTrial, Trial, to_json

_log = logging.getLogger("dynopt_ray.search")


def search(
    trial: Trial,
    space: SpaceConfig | Space,
    *,
    num_trials: int | None = None,
    cost_weight: float = 0.1,
    searcher: SearcherLike = "optuna",
    scheduler: "SchedulerLike | None" = None,
    num_reports: int = 10,
    first: Sequence[Point] = (),
    seed: int = 0,
    cpus_per_trial: float = 1,
    gpus_per_trial: float = 0,
    max_concurrent: int | None = None,
    pack: PackSize = None,
    accelerator_type: str | None = None,
    resources: Mapping[str, float] | None = None,
    order: Literal["arrival", "drawn"] = "arrival",
    deterministic: bool = False,
    choice: Winner = "one_standard_error",
    max_failures: int = 3,
    time_limit_s: float | None = None,
    storage: Directory | SearchStorage | None = None,
    objective: SearchObjective = "utility",
    warm_start: Sequence[Directory] = (),
    trackers: "Sequence[TrackerLike]" = (),
    local: bool = False,
    address: str | None = None,
    on_end: Callable[[TrialLog], None] = lambda _: None,
) -> SearchResult:
    """Find the configuration with the highest utility, and the Pareto front of accuracy and cost.

    With `storage`, nothing that was measured is lost when this process, a trial's process or a node
    dies: called again with the same arguments, the search continues where it stopped, down to the
    state of its searcher and its scheduler. Trials that were running continue from their last
    stored state.

    Args:
        trial: runs one configuration and yields or returns measurements; see `Trial`. Its data,
            such as a trained network, are sent to the cluster's object store once.
        space: setting -> a list of options, a range {low, high, log}, or a fixed value. A list of
            such spaces is their union. See `Space.parse`.
        num_trials: total number of trials. None tries every configuration of a grid; other
            searchers need a number. No built-in searcher tries a configuration twice, so a search
            ends early, and `SearchResult.note` says so, once all of a finite space were tried.
        cost_weight: λ of utility = accuracy − λ · cost, >= 0.
        searcher: draws configurations: a name, a mapping with name and arguments, or Ray Tune's.
        scheduler: stops, pauses or changes trials; given in the same way. None lets all finish.
        num_reports: number of measurements of a complete trial; the scheduler needs it.
        first: points to try before the searcher draws. Each maps names of dimensions to a number
            from a range or to the index of an option, from 0. The names of nested dimensions are
            dotted; in a union they begin with "member". Dimensions that are left out take the
            middle of their range or their first option. Not allowed with a grid. There may be at
            most `num_trials` points.
        seed: seed of the draws.
        cpus_per_trial: CPU cores reserved for each trial, which uses one thread per core.
        gpus_per_trial: GPUs reserved for each trial, at most 1. With a fraction, trials share a
            GPU: as many as fit on it.
        max_concurrent: maximum number of slots, in each of which one trial runs, or a pack of them.
            Default: as many as the cluster has room for.
        pack: number of trials that share a slot and its process. Pruning trials of MLPs are trained
            together, as one population; the figures of each are those of a pack of its own, to the
            last bit on a CPU, and differ by rounding from those without a pack. Other trials take
            turns, which pays if they take milliseconds, and would otherwise mostly wait for the
            network. "auto" measures how many are best; see `SearchResult.note`. None runs one trial
            in a slot, without a pack.
        accelerator_type: kind of GPU that a trial needs, such as "H100".
        resources: custom resources that a slot reserves: name -> amount.
        order: "arrival" decides about measurements as they arrive. "drawn" decides in the order in
            which trials were drawn: all running trials make a measurement before any goes on. A
            search with several trials at once then repeats, if `max_concurrent` is given.
        deterministic: whether a GPU repeats trials bit for bit; see `devices.Determinism`. Slower.
        choice: which finished trial wins: "best" is the one with the highest utility.
            "one_standard_error" is the cheapest one that cannot be told from it on the validation
            rows, if trials give `row_scores`; the best of many trials is partly luck.
        max_failures: how often a trial whose process or node died is continued before it counts as
            failed. A trial that raises an error or measures NaN fails at once, alone.
        time_limit_s: the time in seconds after which a trial is ended, or None.
        storage: a directory, or a URI that pyarrow can open such as s3://bucket/run, for the
            journal, the states and the networks of the search. None keeps nothing after the search.
        objective: what the searcher looks for. "utility" is one figure. "pareto" is a front of
            high accuracy and low cost, and a list such as ["accuracy", "flops", "params"] one with
            other costs, which trials measure. All trials then have to finish: there is no
            scheduler. The best trial is still that of the highest utility, and with `storage` the
            networks of the whole front are in trials/.
        warm_start: run directories, or the `storage` of earlier searches, from whose finished
            trials the searcher learns before it draws. Only trials whose configurations are in this
            space count. Their figures should be of the same task and the same starting network.
        trackers: show the trials in other tools while they run: "tensorboard" (event files in the
            directory of `storage`, or in one that a mapping with `name` and `directory` gives),
            "mlflow", or objects with the methods of `Tracker`. If a tracker fails, the search goes
            on without it.
        local: run the trials in this process, one at a time, on a GPU only if `gpus_per_trial` is
            above 0. Searchers and schedulers belong to
            Ray Tune, so its package is imported, but no cluster is started.
        address: address of a cluster to join if Ray is not running yet. None starts one on this
            machine.
        on_end: called with the log after each trial has ended.

    Raises:
        SpecError: the space, a configuration in it, a point of `first`, an entry of `warm_start`,
            `pack` or a plugin's arguments are wrong. No trial has started.
        ValueError: a number is out of range, or the searcher or the scheduler cannot look for the
            objective.
        UnknownNameError: there is no searcher or scheduler of this name.
        ClusterError: no node has room for a trial.
        RunError: the storage is in use by another process, is damaged, or has another search.
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
        max_failures=max_failures,
        time_limit_s=time_limit_s,
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
    check_pack(trial, parsed, pack, order=order)
    objectives = Objectives.parse(objective)
    made_scheduler = make_scheduler(scheduler, num_reports=num_reports, space=parsed)
    objectives.check(search_algorithm, made_scheduler)
    check_learns(search_algorithm, warm_start)
    plan = SearchPlan(
        trial=trial,
        space=parsed,
        num_trials=num_trials,
        seed=seed,
        cost_weight=cost_weight,
        searcher=search_algorithm,
        scheduler=made_scheduler,
        objectives=objectives,
        loop=LoopConfig(
            per_slot=pack if isinstance(pack, int) else 1,
            max_failures=max_failures,
            time_limit_s=time_limit_s,
            in_order=order == "drawn",
        ),
        slot=ClusterNeed(cpus_per_trial, gpus_per_trial, accelerator_type, resources or {}),
        max_concurrent=max_concurrent,
        deterministic=deterministic,
        choice=choice,
        address=None if local else (address or ""),
        pack=pack,
        trackers=make_trackers(trackers, directory=local_directory(storage)),
    )
    settings = to_json(
        {
            "space": parsed.plain,
            "searcher": _described(searcher),
            "scheduler": _described(scheduler),
            "num_reports": num_reports,
            "cost_weight": cost_weight,
            "first": [dict(point) for point in first],
            "seed": seed,
            "order": order,
            "objective": list(objective) if not isinstance(objective, str) else objective,
            "trial": _identity(trial),
            "together": pack is not None and isinstance(trial, PackableTrial),
        }
    )
    log = TrialLog(objectives.costs)
    with opened(storage) as place:
        known: Sequence[EarlierTrial] = ()
        if place is None or place.is_new:
            known = earlier_trials(warm_start, parsed, cost_weight=cost_weight)
        records = place.begin(settings, known) if place else ()
        if records:
            known = known_trials(records)
        network, chosen = run_plan(plan, place, records, known, log, on_end)
    notes = [part for part in (note, chosen) if part]
    return log.result(network, choice=choice, note="; ".join(notes))


def _described(part: Any) -> Any:
    """Return a searcher or scheduler as it was given, or the name of its class."""
    return part if part is None or isinstance(part, str | Mapping) else type(part).__qualname__


def _identity(trial: Trial) -> str:
    """Return what makes a trial the same one in another process."""
    identity = getattr(trial, "identity", None)
    if identity is not None:
        return str(identity())
    return str(getattr(trial, "__qualname__", type(trial).__qualname__))
