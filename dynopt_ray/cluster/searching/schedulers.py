"""The built-in schedulers, which stop trials early, pause them, or change living ones.

They are those of Ray Tune, with arguments in reports: the number of measurements of a trial.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.schedulers.pb2 import PB2

from dynopt_ray.cluster.searching.domains import tune_space
from dynopt_ray.cluster.searching.space import Range, Space
from dynopt_ray.errors import SpecError, did_you_mean


def none(*, num_reports: int) -> TrialScheduler:
    """Let every trial finish.

    Args:
        num_reports: unused.
    """
    del num_reports
    return FIFOScheduler()  # type: ignore[no-untyped-call]


def asha(
    *, num_reports: int, grace_reports: int = 1, reduction_factor: float = 3
) -> TrialScheduler:
    """Asynchronous successive halving: stop trials that are worse than others at the same report.

    Args:
        num_reports: number of reports of a complete trial.
        grace_reports: number of reports before a trial may be stopped.
        reduction_factor: at each rung, the best 1/`reduction_factor` of the trials continue.

    Raises:
        ValueError: an argument is out of range.

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
        # ASHA stops trials at max_t. A trial that makes its last report has finished instead.
        max_t=num_reports + 1,
        reduction_factor=reduction_factor,
    )


def hyperband(*, num_reports: int, reduction_factor: float = 3) -> TrialScheduler:
    """HyperBand: brackets of trials, each of which is halved again and again.

    Trials wait for the others of their bracket, so a trial needs states to be continued from; one
    without begins anew each time.

    Args:
        num_reports: number of reports of a complete trial.
        reduction_factor: the best 1/`reduction_factor` of a bracket continue.

    Raises:
        ValueError: an argument is out of range.

    References:
        Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization".
    """
    if not reduction_factor > 1:
        raise ValueError(f"hyperband: reduction_factor is {reduction_factor}; it must be above 1")
    # A trial that makes its last report has finished, and its bracket goes on without it.
    return HyperBandScheduler(
        max_t=num_reports, reduction_factor=reduction_factor, stop_last_trials=False
    )


def median(*, num_reports: int, grace_reports: int = 1, min_samples: int = 3) -> TrialScheduler:
    """Median rule: stop trials whose best result is below the median of the others' means.

    Args:
        num_reports: number of reports of a complete trial.
        grace_reports: number of reports before a trial may be stopped.
        min_samples: number of other trials that must have come as far.

    Raises:
        ValueError: an argument is out of range.

    References:
        Golovin et al. 2017, "Google Vizier: A Service for Black-Box Optimization".
    """
    if not 1 <= grace_reports <= num_reports:
        raise ValueError(
            f"median: grace_reports is {grace_reports}; it must be from 1 to the {num_reports} "
            "reports of a trial"
        )
    if min_samples < 1:
        raise ValueError(f"median: min_samples is {min_samples}; it must be at least 1")
    return MedianStoppingRule(
        time_attr="training_iteration",
        grace_period=grace_reports,
        min_samples_required=min_samples,
        # Without it, trials would make way for others as long as there are too few to compare.
        min_time_slice=num_reports,
    )


def pbt(
    *,
    num_reports: int,
    change: Sequence[str] = (),
    every_reports: int = 1,
    share: float = 0.25,
    resample: float = 0.25,
    factors: Sequence[float] = (0.8, 1.2),
) -> TrialScheduler:
    """Population based training: trials that lag go on from the states of better ones.

    All trials form one population. Every few reports, the worst of them take over states and
    settings of the best, and change some of these settings at random.

    Args:
        num_reports: number of reports of a complete trial.
        change: the dimensions of the space that are changed in living trials, such as "lr" and
            "remove_fraction". Empty: all ranges of the space.
        every_reports: number of reports between changes.
        share: fraction of the trials that are replaced at a time, in (0, 0.5].
        resample: probability that a setting is drawn anew and not changed by a factor.
        factors: a changed setting is multiplied by one of these two.

    Raises:
        ValueError: an argument is out of range.

    References:
        Jaderberg et al. 2017, "Population Based Training of Neural Networks".
    """
    _check_population("pbt", num_reports, every_reports, share)
    low, high = factors
    return PopulationBased(
        change,
        perturbation_interval=every_reports,
        quantile_fraction=share,
        resample_probability=resample,
        perturbation_factors=(high, low),
    )


def pb2(
    *,
    num_reports: int,
    change: Sequence[str] = (),
    every_reports: int = 1,
    share: float = 0.25,
) -> TrialScheduler:
    """Population based bandits: like `pbt`, but a Gaussian process chooses the new settings.

    Args:
        num_reports: number of reports of a complete trial.
        change: the ranges of the space that are changed in living trials. Empty: all of them.
        every_reports: number of reports between changes.
        share: fraction of the trials that are replaced at a time, in (0, 0.5].

    Raises:
        ValueError: an argument is out of range.

    References:
        Parker-Holder et al. 2020, "Provably Efficient Online Hyperparameter Optimization with
        Population-Based Bandits".
    """
    _check_population("pb2", num_reports, every_reports, share)
    return PopulationBasedBandits(
        change, perturbation_interval=every_reports, quantile_fraction=share
    )


class PopulationBased(PopulationBasedTraining):
    """The scheduler that `pbt` makes. `cover` gives it the space before the first trial."""

    def __init__(self, change: Sequence[str], **arguments: Any) -> None:
        self._change = tuple(change)
        super().__init__(
            time_attr="training_iteration",
            hyperparam_mutations={"of the space": [0]},  # `cover` replaces it
            log_config=False,
            **arguments,
        )

    def cover(self, space: Space) -> None:
        """Set the space whose settings are changed.

        Raises:
            SpecError: a setting to change is not in the space, or there is none.
        """
        domains = tune_space(space)
        self._hyperparam_mutations = {
            name: domains[name] for name in _changed(self._change, space, "pbt")
        }


class PopulationBasedBandits(PB2):
    """The scheduler that `pb2` makes. `cover` gives it the space before the first trial."""

    def __init__(self, change: Sequence[str], **arguments: Any) -> None:
        self._change = tuple(change)
        super().__init__(
            time_attr="training_iteration",
            hyperparam_bounds={"of the space": [0, 1]},  # `cover` replaces it
            log_config=False,
            **arguments,
        )

    def cover(self, space: Space) -> None:
        """Set the space whose settings are changed.

        Raises:
            SpecError: a setting to change is not a range of the space, or there is none.
        """
        bounds: dict[str, Any] = {}
        for name in _changed(self._change, space, "pb2"):
            dimension = space.dimensions[name]
            if not isinstance(dimension, Range):
                raise SpecError(f"pb2: {name} is a choice; it changes ranges only, or use pbt")
            bounds[name] = [dimension.low, dimension.high]
        self._hyperparam_mutations = self._hyperparam_bounds = bounds
        self._hyperparam_bounds_flat = dict(bounds)


def draws_ahead(scheduler: TrialScheduler) -> Callable[[], bool]:
    """Return a function that tells whether the scheduler wants another trial to be drawn now.

    A population is complete before it starts, and so is a band of HyperBand's brackets. Other
    schedulers take trials as they come.
    """
    if isinstance(scheduler, PopulationBasedTraining):
        return lambda: True
    if isinstance(scheduler, HyperBandScheduler):
        return lambda: _is_open(scheduler)
    return lambda: False


def pauses(scheduler: TrialScheduler) -> bool:
    """Return whether the scheduler may pause trials, which must then store all their states."""
    if isinstance(scheduler, MedianStoppingRule):
        return not scheduler._hard_stop
    return type(scheduler) not in (AsyncHyperBandScheduler, FIFOScheduler)


def _is_open(scheduler: HyperBandScheduler) -> bool:
    """Whether the latest band of brackets has trials, but not all of them.

    A bracket takes new trials in the places of those that have ended, so all trials of a band have
    to be there before the first of them ends.
    """
    own: Any = scheduler  # its methods have no types
    brackets = [s for s in range(own._s_max_1) if own._get_r0(s) > 0]
    return bool(len(own._trial_info) % sum(own._get_n0(s) for s in brackets))


def _check_population(name: str, num_reports: int, every_reports: int, share: float) -> None:
    if not 1 <= every_reports <= num_reports:
        raise ValueError(
            f"{name}: every_reports is {every_reports}; it must be from 1 to the {num_reports} "
            "reports of a trial"
        )
    if not 0 < share <= 0.5:
        raise ValueError(f"{name}: share is {share}; it must be above 0 and at most 0.5")


def _changed(change: Sequence[str], space: Space, scheduler: str) -> list[str]:
    """Return the names of the dimensions that a scheduler changes in living trials."""
    for name in change:
        if name not in space.dimensions:
            known = list(space.dimensions)
            raise SpecError(
                f"{scheduler}: the space has no dimension {name!r} to change."
                f"{did_you_mean(name, known)} Known: {', '.join(known)}"
            )
    ranges = [name for name, one in space.dimensions.items() if isinstance(one, Range)]
    if not (change or ranges):
        raise SpecError(f"{scheduler}: the space has no range, so name what to change")
    return list(change or ranges)
