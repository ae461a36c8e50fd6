"""Schedulers by name: what stops trials early."""

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler


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
