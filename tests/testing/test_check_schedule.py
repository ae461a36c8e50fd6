"""The kit finds each way in which a schedule can be broken."""

import math
from collections.abc import Callable

import pytest

from dynopt_ray.schedules import Schedule, constant
from dynopt_ray.testing import check_schedule


def whole(step: int) -> int:
    if not isinstance(step, int) or step < 0:
        raise ValueError
    return step


class Counting:
    calls = 0

    def __call__(self, step: int) -> float:
        self.calls += whole(step) + 1
        return float(self.calls)


def nested() -> Schedule:
    return lambda step: float(whole(step))


def diverging(step: int) -> float:
    return math.nan if step == 7 else 0.0


def any_step(step: int) -> float:
    return 1.0 + 0.0 * step


def text(step: int) -> float:
    return str(step)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diverging, "step 7 gives nan"),
        (lambda: text, "step 0 gives '0', which is not a float"),
        (Counting, "but another order of calls gives"),
        (iter([constant(1.0), constant(2.0)]).__next__, "but a second schedule gives 2.0"),
        (nested, "cannot be pickled"),
        (lambda: any_step, "step -1 gives 1.0; steps are whole numbers from 0 on"),
    ],
)
def test_broken_schedules_fail(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_schedule(make)


def test_out_of_range_fails() -> None:
    with pytest.raises(AssertionError, match=r"step 0 gives 2.0, outside \[0, 1\]"):
        check_schedule(lambda: constant(2.0), low=0, high=1)


def test_half_a_step_is_no_step() -> None:
    with pytest.raises(AssertionError, match=r"step 0\.5 gives"):
        check_schedule(lambda: accepts_halves)


def accepts_halves(step: int) -> float:
    if step < 0:
        raise ValueError
    return float(step)
