"""The schedule type, and the checks and helpers that the built-in schedules share."""

import math
import operator
from collections.abc import Callable

Schedule = Callable[[int], float]
"""A pure function of the step: the same step gives the same value, whatever was called before."""


def check_number(
    schedule: str, name: str, value: object, *, above: float = -math.inf, most: float = math.inf
) -> None:
    """Refuse a value that is not a finite number in (above, most].

    Raises:
        TypeError: the value is not an int or float, or it is a bool.
        ValueError: the value is NaN, infinite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{schedule}: {name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{schedule}: {name} is {value!r}; it must be finite")
    if not above < value <= most:
        bounds = [f"> {above:g}"] if above > -math.inf else []
        bounds += [f"<= {most:g}"] if most < math.inf else []
        raise ValueError(f"{schedule}: {name} is {value!r}; it must be {' and '.join(bounds)}")


def check_count(schedule: str, name: str, value: object) -> None:
    """Refuse a value that is not a whole number of steps >= 1; raises errors as `check_whole`."""
    check_whole(schedule, name, value, least=1)


def check_whole(schedule: str, name: str, value: object, *, least: int) -> None:
    """Refuse a value that is not a whole number of steps >= `least`.

    Raises:
        TypeError: the value is not an int.
        ValueError: the value is less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{schedule}: {name} must be a whole number of steps, not {value!r}")
    if value < least:
        unit = "step" if least == 1 else "steps"
        raise ValueError(f"{schedule}: {name} is {value}; it must be at least {least} {unit}")


def check_step(step: int) -> int:
    """Return the step as an int; integers of other libraries, such as NumPy, are accepted.

    Raises:
        TypeError: `step` is not an integer.
        ValueError: `step` is negative.
    """
    try:
        index = operator.index(step)
    except TypeError:
        raise TypeError(f"a schedule's step must be a whole number, not {step!r}") from None
    if index < 0:
        raise ValueError(f"a schedule starts at step 0; step {index} is before that")
    return index


def progress(step: int, num_steps: int) -> float:
    """The fraction of `num_steps` that is done at `step`, in [0, 1]; 1 after the last step."""
    return min(check_step(step), num_steps) / num_steps


def between(initial: float, final: float, done: float) -> float:
    """Interpolate from `initial` (done = 0) to `final` (done = 1).

    The weighted mean of both ends is clamped to the range between them. So the ends are reached
    exactly and rounding never leaves the range. `initial + (final - initial) * done` could.
    """
    value = initial * (1.0 - done) + final * done
    return float(min(max(value, min(initial, final)), max(initial, final)))
