"""The conformance kit for schedules."""

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
    """Check that a schedule meets its contract.

    The schedule must:

    - be a pure function of the step: the same step gives the same value, in any order of calls;
    - return finite floats in [low, high] during `num_steps` and long after;
    - refuse steps that are negative or not whole;
    - survive pickling, because it is sent to workers.

    Args:
        make: makes the schedule; two schedules that it makes must agree.
        num_steps: the number of first steps that are all checked.
        low: the smallest value that the schedule may return.
        high: the largest value that the schedule may return.

    Raises:
        AssertionError: the schedule breaks the contract; the message says how, and at which step.

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
    for name, same in (("another order of calls", schedule), ("a second schedule", make())):
        _require_same(name, same, steps, values)
    try:
        copy: Schedule = pickle.loads(pickle.dumps(schedule))
    except Exception as error:
        raise AssertionError(
            f"the schedule cannot be pickled ({error}), so it cannot be sent to workers: use a "
            f"frozen dataclass with __call__ instead of a nested function"
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
        value = schedule(step)  # type: ignore[arg-type]  # a wrong type on purpose
    except (TypeError, ValueError):
        return
    raise AssertionError(
        f"step {step} gives {value}; steps are whole numbers from 0 on: raise a ValueError or "
        "TypeError"
    )
