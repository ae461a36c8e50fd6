"""Searchers and schedulers by name; the algorithms are Optuna's and Ray Tune's."""

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch


def random(*, seed: int) -> Searcher:
    """Independent draws.

    Args:
        seed: of the draws.
    """
    from optuna.samplers import RandomSampler

    return _optuna(RandomSampler(seed=seed))


def optuna(*, seed: int, num_startup_trials: int = 10) -> Searcher:
    """Optuna's tree-structured Parzen estimator: draws near what did well.

    Args:
        seed: of the draws. With several trials at once it sees their results in the order in
            which they arrive; with one at a time the same seed gives the same search.
        num_startup_trials: trials drawn at random before it begins to learn.
    """
    from optuna.samplers import TPESampler

    return _optuna(TPESampler(seed=seed, n_startup_trials=num_startup_trials))


def asha(
    *, num_reports: int, grace_reports: int = 1, reduction_factor: float = 3
) -> TrialScheduler:
    """Asynchronous successive halving: stops trials that are behind at the same report.

    Args:
        num_reports: what a whole trial makes.
        grace_reports: reports before a trial may be stopped.
        reduction_factor: one in so many goes on at each rung.

    Raises:
        ValueError: an argument out of range.

    References:
        Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning".
    """
    if not 1 <= grace_reports <= num_reports:
        raise ValueError(
            f"asha: grace_reports is {grace_reports}; it must be from 1 to the {num_reports} "
            "reports of a trial"
        )
    if not reduction_factor > 1:
        raise ValueError(f"asha: reduction_factor is {reduction_factor}; it must be above 1")
    return AsyncHyperBandScheduler(
        grace_period=grace_reports,
        # Whoever makes the last report has finished: nothing may be stopped there.
        max_t=num_reports + 1,
        reduction_factor=reduction_factor,
    )


def _optuna(sampler: Any) -> Searcher:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(sampler=sampler)
