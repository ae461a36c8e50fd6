"""The conformance kit of schedules."""

import math
import pickle
from collections.abc import Callable

from dynopt_ray.schedules import Schedule
from dynopt_ray.testing.requirement import require


def check_schedule(
    make: Callable[[], Schedule],
    *,
    num_steps: int = 1_000,
    low: float = -math.inf,
    high: float = math.inf,
) -> None:
    """Check that what `make` returns behaves as a schedule must.

    It is a pure function of the step (whatever was asked before, the same step gives the same
    value), gives finite floats in [low, high] during `num_steps` and long after, refuses
    steps that are negative or not whole, and travels to workers by pickle.

    Args:
        make: makes the schedule; called twice, and both must agree.
        num_steps: the steps that are all tried.
        low: the smallest value it may give.
        high: the largest value it may give.

    Raises:
        AssertionError: what it does wrong, and at which step.

    Example:
        >>> from dynopt_ray.schedules import cosine
        >>> check_schedule(lambda: cosine(0.1, num_steps=500), low=0.0, high=0.1)
    """
    schedule = make()
    steps = [*range(num_steps), 10 * num_steps, 1_000 * num_steps]
    values = [schedule(step) for step in steps]
    for step, value in zip(steps, values, strict=True):
        require(isinstance(value, float), f"step {step} gives {value!r}, which is not a float")
        require(math.isfinite(value), f"step {step} gives {value}, which is not finite")
        require(low <= value <= high, f"step {step} gives {value}, outside [{low}, {high}]")
    for name, same in (("another order of calls", schedule), ("a second one", make())):
        _require_same(name, same, steps, values)
    try:
        copy: Schedule = pickle.loads(pickle.dumps(schedule))
    except Exception as error:
        raise AssertionError(
            f"it cannot be pickled ({error}); workers need it: use a frozen dataclass with "
            f"__call__ instead of a nested function"
        ) from error
    _require_same("its pickled copy", copy, steps, values)
    _require_refused(schedule, -1)
    _require_refused(schedule, 0.5)


def _require_same(name: str, schedule: Schedule, steps: list[int], values: list[float]) -> None:
    for step, value in reversed(list(zip(steps, values, strict=True))):
        again = schedule(step)
        require(again == value, f"step {step} gave {value}, but {name} gives {again}")


def _require_refused(schedule: Schedule, step: float) -> None:
    try:
        value = schedule(step)  # type: ignore[arg-type]  # that is the point
    except (TypeError, ValueError):
        return
    raise AssertionError(
        f"step {step} gives {value}; steps are whole and start at 0: raise ValueError or TypeError"
    )
