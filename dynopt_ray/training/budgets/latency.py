"""Latency budgets: choose by a model, measure the choice, and choose again.

Widths are chosen by a model that predicts the latency, because measuring every candidate would take
too long. The prediction of the chosen widths may be wrong, so they are measured. The measurement
corrects the model, and the next choice is made by the corrected model.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

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
