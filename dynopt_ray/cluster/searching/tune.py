"""Run the trials of a search on a cluster with Ray Tune."""

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
from dynopt_ray.cluster.searching.result import BestNetwork
from dynopt_ray.cluster.searching.search_setup import SearchSetup
from dynopt_ray.cluster.searching.space import Space
from dynopt_ray.cluster.searching.trial import UNFINISHED, Trial, failure, measured

# Keys of a reported result. `_NAMES` has the names of the figures that the trial measured, because
# Tune adds figures of its own. `_FAILURE` has the error of a failed trial, `_NOTE` the reason why a
# trial stopped on its own.
_NAMES, _FAILURE, _NOTE = "measured", "failure", "note"

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # quiet only in combination with verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # would write four files per trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else Ctrl-C would look like an early success
    "TUNE_WARN_THRESHOLD_S": "30",
}


def run_on_cluster(
    setup: SearchSetup, *, resources: Mapping[str, float], max_concurrent: int
) -> tuple[str, bytes] | None:
    """Run the trials of a search in Tune actors, each of which runs many trials; see `search`.

    Ray must be running.

    Returns:
        The id and the network of the best trial, or None if no trial gave a network.
    """
    keeper: Any = ray.remote(BestNetwork).options(num_cpus=0).remote()
    shared = {"trial": setup.trial, "space": setup.space, "cost_weight": setup.cost_weight}
    # This puts the trial's data into the object store once, not once per trial.
    train = tune.with_parameters(_train, **shared, keeper=keeper, resources=dict(resources))
    with _quiet(), tempfile.TemporaryDirectory(prefix="dynopt-search-") as storage:
        tuner = tune.Tuner(
            tune.with_resources(train, dict(resources)),
            param_space=tune_space(setup.space),
            tune_config=tune.TuneConfig(
                metric="utility",
                mode="max",
                num_samples=setup.num_trials,
                search_alg=setup.searcher,
                scheduler=setup.scheduler,
                max_concurrent_trials=max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=storage, name="search", verbose=0, callbacks=[_Listener(setup)]
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
    """Run one trial in a worker."""
    torch.set_num_threads(max(1, int(resources.get("cpu", 1))))
    gpus = resources.get("gpu", 0)
    if 0 < gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)  # Ray does not enforce fractions

    def keep(utility: float, cost: float, network: Callable[[], bytes]) -> None:
        if ray.get(keeper.wants.remote(utility, cost)):
            trial_id = tune.get_context().get_trial_id()
            ray.get(keeper.offer.remote(trial_id, utility, cost, network()))

    row: dict[str, Any] = {}
    try:
        for row in measured(trial, space.decode(flat), cost_weight, keep):
            tune.report({**row, _NAMES: list(row)})
        if not row["final"]:
            tune.report({**row, _NOTE: UNFINISHED})
    except Exception as error:
        # An error ends only its own trial. If it reached Tune, it would end the actor too, and
        # starting a new one takes seconds. NaN tells the searcher and the scheduler of the failure.
        tune.report({"utility": math.nan, _FAILURE: failure(error)})


class _Listener(tune.Callback):
    """Records in the log what Tune's controller reports about trials."""

    def __init__(self, setup: SearchSetup) -> None:
        self._setup = setup
        self._log = setup.log
        self._failures: dict[str, str] = {}
        self._notes: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune saves callbacks to resume experiments, which searches never do."""
        return {}

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Record the start of a trial."""
        del iteration, info
        # The index is the order of drawing. Trials that were drawn together start in any order.
        self._log.start(trial.trial_id, trials.index(trial), self._setup.space.decode(trial.config))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Record a measurement, or the error of a trial that failed."""
        del iteration, trials, info
        if _FAILURE in result:
            self._failures[trial.trial_id] = result[_FAILURE]
        elif _NOTE in result:
            self._notes[trial.trial_id] = result[_NOTE]
        else:
            self._log.measure(trial.trial_id, {name: result[name] for name in result[_NAMES]})

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Record the end of a trial that finished, failed or was stopped."""
        del iteration, trials, info
        self._end(trial, self._failures.get(trial.trial_id))

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Record the end of a trial whose process died or could not start."""
        del iteration, trials, info
        self._end(trial, _cause(trial.get_pickled_error()))

    def _end(self, trial: TuneTrial, error: str | None) -> None:
        self._log.end(trial.trial_id, error=error, note=self._notes.get(trial.trial_id, ""))
        self._setup.on_end(self._log)


def _cause(error: Exception | None) -> str:
    """Return the trial's own error as text, without the errors that Ray wraps around it."""
    cause: BaseException | None = error
    while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause is not None:
        cause = cause.cause
    return failure(cause) if cause is not None else "its process died"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Tune's tables, its files and the traceback of every failed trial."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # ASHA takes quantiles of nothing but NaN if the first trials of a rung have failed.
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
