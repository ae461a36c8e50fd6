"""Figures worked out by hand, bad arguments, and properties that hold for all arguments."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynopt_ray import schedules
from dynopt_ray.schedules import (
    Schedule,
    article_step,
    constant,
    cosine,
    exponential,
    linear,
    polynomial,
    rewind,
    sequence,
    step,
    warmup,
)

# Arguments of the wrong type are the point of some tests.
untyped: Any = schedules

finite = st.floats(-1e6, 1e6)
counts = st.integers(1, 10_000)
steps = st.integers(0, 100_000)
gammas = st.floats(0.0, 1.0, exclude_min=True)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(3), {0: 3.0, 10**9: 3.0}),
        # The article's "exponential decay": 0.1·(1 − 50/100)² = 0.025.
        (polynomial(0.1, num_steps=100, power=2), {0: 0.1, 50: 0.025, 100: 0.0, 101: 0.0}),
        # Zhu & Gupta: 0.8 + (0.2 − 0.8)·(1 − 1/2)³ = 0.725.
        (polynomial(0.2, num_steps=10, power=3, final=0.8), {0: 0.2, 5: 0.725, 10: 0.8}),
        (exponential(0.5, gamma=0.1), {0: 0.5, 1: 0.05, 2: 0.005}),
        (step(1.0, gamma=0.1, period_steps=3), {0: 1.0, 2: 1.0, 3: 0.1, 5: 0.1, 6: 0.01}),
        (cosine(1.0, num_steps=4, final=0.2), {0: 1.0, 1: 0.6 + 0.2 * 2**0.5, 2: 0.6, 4: 0.2}),
        (linear(1.0, num_steps=4, final=0.0), {0: 1.0, 1: 0.75, 4: 0.0, 5: 0.0}),
        # T mod S = 100 mod 30 = 10: 0.1·(1 − 4/10) = 0.06, and zero past 10.
        (article_step(0.1, num_steps=100, period_steps=30), {0: 0.1, 4: 0.06, 10: 0, 11: 0, 95: 0}),
        (warmup(linear(1.0, num_steps=4, final=0.0), num_steps=2), {0: 0, 1: 0.5, 2: 1.0, 3: 0.75}),
        (warmup(constant(1.0), num_steps=4, initial=2.0), {0: 2.0, 1: 1.75, 4: 1.0}),
        (
            sequence(
                [constant(1), linear(5, num_steps=2, final=7), constant(9)], milestones=[2, 4]
            ),
            {0: 1, 1: 1, 2: 5, 3: 6, 4: 9, 99: 9},
        ),
        (rewind(linear(1.0, num_steps=4, final=0.0), to_step=3), {0: 0.25, 1: 0.0}),
    ],
)
def test_values_worked_out_by_hand(schedule: Schedule, expected: dict[int, float]) -> None:
    assert {at: schedule(at) for at in expected} == pytest.approx(expected, abs=1e-15)


def test_article_step_refuses_a_period_that_divides_the_run() -> None:
    with pytest.raises(ValueError, match=r"100 mod 25 = 0.*use step\("):
        article_step(0.1, num_steps=100, period_steps=25)


def test_article_step_equals_its_formula_up_to_its_end() -> None:
    schedule = article_step(0.3, num_steps=1000, period_steps=64)
    end = 1000 % 64
    assert [schedule(t) for t in range(end + 1)] == [0.3 * (1 - t / end) for t in range(end + 1)]
    assert not any(schedule(t) for t in range(end + 1, 1000))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: untyped.constant(math.nan), ValueError, "value is nan; it must be finite"),
        (lambda: untyped.constant("0.1"), TypeError, "value must be a number, not '0.1'"),
        (lambda: untyped.constant(True), TypeError, "value must be a number, not True"),
        (
            lambda: untyped.polynomial(0.1, num_steps=0),
            ValueError,
            "num_steps is 0; it must be at least 1",
        ),
        (
            lambda: untyped.polynomial(0.1, num_steps=10.0),
            TypeError,
            "whole number of steps, not 10.0",
        ),
        (
            lambda: untyped.polynomial(0.1, num_steps=9, power=0),
            ValueError,
            "power is 0; it must be > 0",
        ),
        (lambda: untyped.polynomial(0.1, num_steps=9, final=math.inf), ValueError, "final is inf"),
        (
            lambda: untyped.exponential(0.1, gamma=1.1),
            ValueError,
            "gamma is 1.1; it must be > 0 and <= 1",
        ),
        (lambda: untyped.exponential(0.1, gamma=0), ValueError, "gamma is 0; it must be > 0"),
        (lambda: untyped.step(0.1, gamma=0.5, period_steps=-1), ValueError, "period_steps is -1"),
        (lambda: untyped.step(0.1, gamma=2, period_steps=1), ValueError, "gamma is 2"),
        (lambda: untyped.cosine(None, num_steps=3), TypeError, "cosine: initial must be a number"),
        (lambda: untyped.cosine(0.1, num_steps=3, final="0"), TypeError, "final must be a number"),
        (
            lambda: untyped.linear(0.1, num_steps=True, final=0),
            TypeError,
            "num_steps must be a whole",
        ),
        (
            lambda: untyped.article_step(0.1, num_steps=5, period_steps=0),
            ValueError,
            "period_steps is 0",
        ),
        (lambda: untyped.warmup(0.1, num_steps=3), TypeError, r"write constant\(0.1\)"),
        (
            lambda: untyped.warmup(untyped.constant(1), num_steps=0),
            ValueError,
            "warmup: num_steps is 0",
        ),
        (
            lambda: untyped.rewind(untyped.constant(1), to_step=-1),
            ValueError,
            "rewind: to_step is -1; it must be at least 0 steps",
        ),
        (lambda: untyped.rewind(0.1, to_step=0), TypeError, r"write constant\(0.1\)"),
        (lambda: untyped.sequence([], milestones=[]), ValueError, "0 schedules and 0 milestones"),
        (
            lambda: untyped.sequence([untyped.constant(1)], milestones=[3]),
            ValueError,
            "1 schedules and 1 mile",
        ),
        (
            lambda: untyped.sequence([untyped.constant(1)] * 3, milestones=[5, 5]),
            ValueError,
            "do not increase",
        ),
        (
            lambda: untyped.sequence([1, 2], milestones=[5]),
            TypeError,
            r"schedules\[0\] must be a schedule",
        ),
        (
            lambda: untyped.sequence([untyped.constant(1)] * 2, milestones=[0]),
            ValueError,
            r"milestones\[0\] is 0",
        ),
    ],
)
def test_bad_arguments_are_refused_at_once(
    make: Callable[[], Schedule], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_sequence_does_not_follow_changes_of_the_callers_list() -> None:
    parts: list[Schedule] = [constant(1), constant(2)]
    schedule = sequence(parts, milestones=[1])
    parts[1] = constant(3)
    assert schedule(1) == 2


def test_rounding_does_not_leave_the_range() -> None:
    # 0.9·(1 − 2/10) + 0.9·2/10 is 0.9000000000000001 in floating point.
    schedule = linear(0.9, num_steps=10, final=0.9)
    assert {schedule(step) for step in range(12)} == {0.9}


def test_numpy_integers_are_steps() -> None:
    assert linear(1.0, num_steps=4, final=0.0)(np.int64(1)) == 0.75  # type: ignore[arg-type]


@given(initial=finite, final=finite, num_steps=counts, at=steps, power=st.floats(0.1, 10))
def test_moves_between_two_values_stay_between_them(
    initial: float, final: float, num_steps: int, at: int, power: float
) -> None:
    low, high = min(initial, final), max(initial, final)
    for schedule in (
        polynomial(initial, num_steps=num_steps, power=power, final=final),
        cosine(initial, num_steps=num_steps, final=final),
        linear(initial, num_steps=num_steps, final=final),
    ):
        assert low <= schedule(at) <= high
        assert schedule(0) == initial
        assert schedule(num_steps + at) == final


@given(initial=st.floats(0, 1e6), gamma=gammas, period=counts, at=steps)
def test_decays_never_rise(initial: float, gamma: float, period: int, at: int) -> None:
    for schedule in (
        exponential(initial, gamma=gamma),
        step(initial, gamma=gamma, period_steps=period),
        polynomial(initial, num_steps=period),
        cosine(initial, num_steps=period),
    ):
        assert 0 <= schedule(at + 1) <= schedule(at) <= initial


@given(num_steps=counts, period=counts, at=steps)
def test_article_step_is_in_range_or_refused(num_steps: int, period: int, at: int) -> None:
    if num_steps % period == 0:
        with pytest.raises(ValueError, match="= 0"):
            article_step(1.0, num_steps=num_steps, period_steps=period)
        return
    schedule = article_step(1.0, num_steps=num_steps, period_steps=period)
    assert 0 <= schedule(at) <= 1
    assert (schedule(at) == 0) == (at >= num_steps % period)


@given(value=finite, length=counts, at=steps)
def test_warmup_is_a_sequence_of_a_line_and_the_schedule(
    value: float, length: int, at: int
) -> None:
    after = exponential(value, gamma=0.9)
    line = linear(0.0, num_steps=length, final=value)
    both = sequence([line, after], milestones=[length])
    assert warmup(after, num_steps=length)(at) == pytest.approx(both(at), rel=1e-12, abs=1e-300)
