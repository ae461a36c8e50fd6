"""Targets are data, checked when they are made."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from dynopt_ray.structure import Cost
from dynopt_ray.training import (
    Budget,
    Distillation,
    Fraction,
    Greedy,
    Random,
    Regrowth,
    Threshold,
    stalled,
)

START = Cost(params=100, nonzero=80, flops=1000, bytes=400)


def test_a_budget_is_a_fraction_of_the_start_or_a_figure() -> None:
    assert Budget(flops=0.5, params=0.25).limits(START) == {"params": 25.0, "flops": 500.0}
    assert Budget.absolute(nonzero=30).limits(START) == {"nonzero": 30}
    assert Budget(params=2.0).limits(START) == {"params": 200.0}
    assert Budget(params=0.5).limits(START, share=0.5) == {"params": 75.0}
    assert Budget.absolute(nonzero=30).limits(START, share=0.5) == {"nonzero": 55.0}


def test_budgets_read_as_they_are_written() -> None:
    assert repr(Budget(flops=0.5)) == "Budget(flops=0.5)"
    assert repr(Budget.absolute(latency_ms=3.5)) == "Budget.absolute(latency_ms=3.5)"
    assert Budget(flops=0.5) == Budget(flops=0.5) != Budget.absolute(flops=0.5)


def test_a_fraction_of_an_unknown_latency_is_refused() -> None:
    with pytest.raises(ValueError, match="latency that was not measured"):
        Budget(latency_ms=0.5).limits(START)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(), "limits nothing"),
        (lambda: Budget(flops=0), "flops is 0; it must be finite and > 0"),
        (lambda: Budget(flops=-0.5), "flops is -0.5"),
        (lambda: Budget.absolute(params=math.nan), "params is nan"),
        (lambda: Fraction(remove=0), "remove is 0; it must lie between"),
        (lambda: Fraction(remove=1.0), "remove is 1.0"),
        (lambda: Threshold(0.0), "value is 0.0"),
        (lambda: Threshold(math.inf), "value is inf"),
        (lambda: Random(share=0.0), "share is 0.0"),
        (lambda: Greedy(share=1.5), "share is 1.5"),
        (lambda: Greedy(num_steps=0), "num_steps is 0"),
        (lambda: Greedy(num_checked=0), "num_checked is 0"),
        (lambda: stalled(min_gain=-1), "min_gain is -1"),
        (lambda: stalled(max_trainings=0), "max_trainings is 0"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Budget(bytes=True),
        lambda: Budget(flops="half"),  # type: ignore[arg-type]
        lambda: Fraction(remove="half"),  # type: ignore[arg-type]
        lambda: Threshold(True),
        lambda: Greedy(share="a"),  # type: ignore[arg-type]
        lambda: Greedy(num_checked=2.5),  # type: ignore[arg-type]
        lambda: Regrowth(share=None),  # type: ignore[arg-type]
        lambda: Distillation(temperature=True),
        lambda: stalled(min_gain="x"),  # type: ignore[arg-type]
        lambda: stalled(max_trainings=2.5),  # type: ignore[arg-type]
    ],
)
def test_values_of_other_types_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"it must be a (whole )?number"):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    half = np.float32(0.5)
    assert Budget(flops=half, params=np.int64(1)).limits(START)["flops"] == 0.5 * START.flops  # type: ignore[arg-type]
    Fraction(remove=half)  # type: ignore[arg-type]
