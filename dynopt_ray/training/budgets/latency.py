"""Latency budgets: choose by a model, measure the choice, and choose again.

Widths are chosen by a model that predicts the latency, because measuring every candidate would take
too long. The prediction of the chosen widths may be wrong, so they are measured. The measurement
corrects the model, and the next choice is made by the corrected model.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from dynopt_ray.errors import BudgetError

Chosen = TypeVar("Chosen")

# Every measurement applies a plan, times the network and undoes the plan.
_MOST_MEASURED = 5


def measured_choices(
    choose: Callable[[], Chosen | None], latency_ms: Callable[[Chosen], float]
) -> Iterator[tuple[Chosen, float]]:
    """Yield choices with their measured latencies, at most 5; the caller stops at a good one.

    Args:
        choose: makes a choice by the latency model as it is at that moment; None ends the loop.
        latency_ms: measures a choice in milliseconds and corrects the model, as
            `Costs.latency_ms_after` does.
    """
    for _ in range(_MOST_MEASURED):
        choice = choose()
        if choice is None:
            return
        yield choice, latency_ms(choice)


def first_within(choices: Iterable[tuple[Chosen, float]], limit: float, target: object) -> Chosen:
    """Return the first choice whose measured latency is within a limit.

    Args:
        choices: choices with their measured latencies in milliseconds.
        limit: the limit in milliseconds.
        target: what sets the limit, for the message.

    Raises:
        BudgetError: there is none.
    """
    measured = []
    for choice, latency_ms in choices:
        if latency_ms <= limit:
            return choice
        measured.append(latency_ms)
    raise BudgetError(
        f"{target!r}: all {len(measured)} choices of widths that the latency model proposed were "
        f"measured above the limit of {limit:.4g} ms; the fastest took {min(measured):.4g} ms. "
        "Allow more latency, or limit flops or bytes, which do not vary with the load of the "
        "machine"
    )
