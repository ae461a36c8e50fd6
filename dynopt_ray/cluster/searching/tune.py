"""Trials on a cluster with Ray Tune."""

import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from dynopt_ray.cluster.searching.domains import tune_space
from dynopt_ray.cluster.searching.plan import SearchPlan
from dynopt_ray.cluster.searching.result import BestNetwork
from dynopt_ray.cluster.searching.space import Space
from dynopt_ray.cluster.searching.trial import Trial, measured

# What Tune adds to a result is told from what the trial measured by their names.
_NAMES, _FAILURE = "measured", "failure"

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 the only quiet combination
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # four files per trial that nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would turn Ctrl-C into an early success
    "TUNE_WARN_THRESHOLD_S": "30",
}


def run_on_cluster(
    plan: SearchPlan, *, resources: Mapping[str, float], max_concurrent: int
) -> tuple[str, bytes] | None:
    """Run trials as Tune actors that are reused; see `search`. Ray must be running.

    Returns:
        What `BestNetwork` kept.
    """
    keeper: Any = ray.remote(BestNetwork).options(num_cpus=0).remote()
    shared = {"trial": plan.trial, "space": plan.space, "cost_weight": plan.cost_weight}
    # Parameters go to the object store once, not to every trial.
    train = tune.with_parameters(_train, **shared, keeper=keeper, resources=dict(resources))
    with _quiet(), tempfile.TemporaryDirectory(prefix="dynopt-search-") as storage:
        tuner = tune.Tuner(
            tune.with_resources(train, dict(resources)),
            param_space=tune_space(plan.space),
            tune_config=tune.TuneConfig(
                metric="utility",
                mode="max",
                num_samples=plan.num_trials,
                search_alg=plan.searcher,
                scheduler=plan.scheduler,
                max_concurrent_trials=max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=storage, name="search", verbose=0, callbacks=[_Listener(plan)]
            ),
        )
        tuner.fit()
    kept: tuple[str, bytes] | None = ray.get(keeper.kept.remote())
    ray.kill(keeper)
    return kept


def _train(
    flat: dict[str, Any],
    *,
    trial: Trial,
    space: Space,
    cost_weight: float,
    keeper: Any,
    resources: Mapping[str, float],
) -> None:
    """What a worker runs for one trial."""
    torch.set_num_threads(max(1, int(resources.get("cpu", 1))))
    gpus = resources.get("gpu", 0)
    if 0 < gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)  # to Ray a fraction is bookkeeping only

    def keep(utility: float, cost: float, network: Callable[[], bytes]) -> None:
        if ray.get(keeper.wants.remote(utility, cost)):
            trial_id = tune.get_context().get_trial_id()
            ray.get(keeper.offer.remote(trial_id, utility, cost, network()))

    try:
        for row in measured(trial, space.decode(flat), cost_weight, keep):
            tune.report({**row, _NAMES: list(row)})
    except Exception as error:
        # Whatever a trial raises ends that trial alone. Raised on to Tune it would end the actor
        # too, and a new one takes seconds. NaN tells searcher and scheduler of the failure.
        tune.report({"utility": math.nan, _FAILURE: f"{type(error).__name__}: {error}"})


class _Listener(tune.Callback):
    """Tells the log what Tune's controller sees."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan = plan
        self._log = plan.log
        self._failures: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks to resume experiments, and we resume none of its."""
        return {}

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial begins."""
        del iteration, info
        # Trials that were drawn together start in any order.
        self._log.start(trial.trial_id, trials.index(trial), self._plan.space.decode(trial.config))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """A trial has reported."""
        del iteration, trials, info
        if _FAILURE in result:
            self._failures[trial.trial_id] = result[_FAILURE]
        else:
            self._log.measure(trial.trial_id, {name: result[name] for name in result[_NAMES]})

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial has finished or was stopped."""
        del iteration, trials, info
        self._end(trial, self._failures.get(trial.trial_id))

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial's process has died, or could not start."""
        del iteration, trials, info
        self._end(trial, _cause(trial.get_pickled_error()))

    def _end(self, trial: TuneTrial, error: str | None) -> None:
        self._log.end(trial.trial_id, error=error)
        self._plan.on_end(self._log)


def _cause(error: Exception | None) -> str:
    """What went wrong in the trial itself, without the layers that Ray puts around it."""
    cause: BaseException | None = error
    while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause is not None:
        cause = cause.cause
    return f"{type(cause).__name__}: {cause}" if cause is not None else "its process died"


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune without its tables, its files and the traceback of every failed trial."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # ASHA's quantiles, where the first trials of a rung have failed.
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
