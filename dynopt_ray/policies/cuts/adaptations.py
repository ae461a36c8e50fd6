"""The result of a single cut in the form of `adapt`, for runs and reports that know that form."""

from typing import Any

from dynopt_ray.policies.adapt_result import AdaptResult
from dynopt_ray.policies.cuts.run import CutResult
from dynopt_ray.training import CostAndMetrics, history_table, row


def as_adaptation(result: CutResult, *, step: int) -> AdaptResult:
    """Return what `adapt` would report of a policy whose only decision was this cut.

    Args:
        result: the result of `cut_once`.
        step: the number of decisions whose training followed the cut; the step of the second row of
            the history, and the best step.
    """
    utilities = (result.utility_before, result.smooth_utility_before)
    rows = [
        _row(result.before, 0, utilities, action=None, train_loss=None),
        _row(
            result.after,
            step,
            (result.utility_after, result.smooth_utility_after),
            action=result.chosen.cut.label,
            train_loss=None if result.training is None else result.training.mean_loss,
            duration_s=result.duration_s,
        ),
    ]
    return AdaptResult(
        history=history_table(rows),
        before=result.before,
        after=result.after,
        best_step=step,
        utility_before=result.utility_before,
        utility_after=result.utility_after,
        smooth_utility_before=result.smooth_utility_before,
        smooth_utility_after=result.smooth_utility_after,
        test=result.test,
        receipts=result.receipts,
        graph=result.graph,
    )


def _row(
    state: CostAndMetrics,
    step: int,
    utilities: tuple[float, float],
    *,
    action: str | None,
    train_loss: float | None,
    duration_s: float = 0.0,
) -> dict[str, Any]:
    return row(
        state,
        step=step,
        group=None,
        action=action,
        kept=True,
        utility=utilities[0],
        smooth_utility=utilities[1],
        train_loss=train_loss,
        duration_s=duration_s,
    )
