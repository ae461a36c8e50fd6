"""The built-in schedulers, which stop trials early."""

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler


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
