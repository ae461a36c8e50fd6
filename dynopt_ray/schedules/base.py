"""What a schedule is, and the checks that all built-in schedules share."""

import math
import operator
from collections.abc import Callable

Schedule = Callable[[int], float]
"""A pure function of the step: the same step gives the same value, in any order of calls."""


def check_number(
    schedule: str, name: str, value: object, *, above: float = -math.inf, most: float = math.inf
) -> None:
    """Refuse what is not a finite number in (above, most].

    Raises:
        TypeError: not an int or float (a bool is neither here).
        ValueError: NaN, infinite or out of range.
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
    """Refuse what is not a whole number of steps, at least 1; errors as of `check_whole`."""
    check_whole(schedule, name, value, least=1)


def check_whole(schedule: str, name: str, value: object, *, least: int) -> None:
    """Refuse what is not a whole number of steps, at least so many.

    Raises:
        TypeError: not an int.
        ValueError: less than that.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{schedule}: {name} must be a whole number of steps, not {value!r}")
    if value < least:
        unit = "step" if least == 1 else "steps"
        raise ValueError(f"{schedule}: {name} is {value}; it must be at least {least} {unit}")


def check_step(step: int) -> int:
    """The step as an int; integers of other libraries (NumPy) count as such.

    Raises:
        TypeError: not an integer.
        ValueError: negative.
    """
    try:
        index = operator.index(step)
    except TypeError:
        raise TypeError(f"a schedule takes a whole step, not {step!r}") from None
    if index < 0:
        raise ValueError(f"a schedule starts at step 0; step {index} is before that")
    return index


def progress(step: int, num_steps: int) -> float:
    """The share of `num_steps` that is over at `step`: in [0, 1], 1 for ever after the end."""
    return min(check_step(step), num_steps) / num_steps


def between(initial: float, final: float, done: float) -> float:
    """The value a share `done` of the way from `initial` to `final`.

    Both ends are weighted and the result is held between them, so that the ends are reached
    exactly and rounding never leaves the range, as `initial + (final - initial) * done` may.
    """
    value = initial * (1.0 - done) + final * done
    return float(min(max(value, min(initial, final)), max(initial, final)))
