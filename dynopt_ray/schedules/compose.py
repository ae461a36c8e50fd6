# ruff: noqa: N801
"""Schedules that are built from other schedules: warmup, sequence and rewind."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise

from dynopt_ray.schedules.base import (
    Schedule,
    between,
    check_count,
    check_number,
    check_step,
    check_whole,
)


@dataclass(frozen=True)
class warmup:
    """A linear rise (or fall) to the first value of a schedule, followed by that schedule.

    a(t) = a₀ + (f(0) − a₀)·t/N for 0 <= t < N, and f(t − N) afterwards. The schedule f starts at
    its own step 0 when the warm-up ends, so none of its steps is skipped.

    Args:
        schedule: f, the schedule that follows the warm-up.
        num_steps: N, the length of the warm-up in steps.
        initial: a₀, the value at step 0.

    Raises:
        TypeError: `schedule` is not callable, or an argument has the wrong type.
        ValueError: `num_steps` < 1, or `initial` is not finite.

    Example:
        >>> from dynopt_ray.schedules import constant
        >>> rate = warmup(constant(0.1), num_steps=4)
        >>> [rate(step) for step in (0, 1, 2, 4, 5)]
        [0.0, 0.025, 0.05, 0.1, 0.1]
    """

    schedule: Schedule
    _: KW_ONLY
    num_steps: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check_schedule("warmup", "schedule", self.schedule)
        check_count("warmup", "num_steps", self.num_steps)
        check_number("warmup", "initial", self.initial)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        index = check_step(step)
        if index >= self.num_steps:
            return float(self.schedule(index - self.num_steps))
        return between(self.initial, self.schedule(0), index / self.num_steps)


@dataclass(frozen=True)
class sequence:
    """Several schedules in sequence, each of which starts at its own step 0.

    a(t) = f_i(t − m_i) for m_i <= t < m_{i+1}, with m_0 = 0 and the milestones m_1 < m_2 < …

    Args:
        schedules: f_0, f_1, …; kept as a tuple.
        milestones: the steps at which the next schedule starts; one fewer than `schedules`.

    Raises:
        TypeError: a schedule is not callable, or a milestone is not an int.
        ValueError: `schedules` is empty, a milestone is less than 1, the milestones do not
            increase, or their number is wrong.

    Example:
        >>> from dynopt_ray.schedules import constant
        >>> removed = sequence([constant(0.0), constant(0.5)], milestones=[100])
        >>> removed(99), removed(100)
        (0.0, 0.5)
    """

    schedules: Sequence[Schedule]
    _: KW_ONLY
    milestones: Sequence[int]

    def __post_init__(self) -> None:
        # Tuples keep the schedule hashable, and later changes to the caller's lists do not matter.
        object.__setattr__(self, "schedules", tuple(self.schedules))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for index, schedule in enumerate(self.schedules):
            _check_schedule("sequence", f"schedules[{index}]", schedule)
        for index, milestone in enumerate(self.milestones):
            check_count("sequence", f"milestones[{index}]", milestone)
        if len(self.milestones) != len(self.schedules) - 1:
            raise ValueError(
                f"sequence: {len(self.schedules)} schedules and {len(self.milestones)} "
                f"milestones; give one milestone between every two consecutive schedules"
            )
        if any(early >= late for early, late in pairwise(self.milestones)):
            raise ValueError(f"sequence: milestones {list(self.milestones)} do not increase")

    def __call__(self, step: int) -> float:
        """The value at a step."""
        index = check_step(step)
        active = sum(index >= milestone for milestone in self.milestones)
        start = self.milestones[active - 1] if active else 0
        return float(self.schedules[active](index - start))


@dataclass(frozen=True)
class rewind:
    """A schedule that starts at a later step, for retraining at the rates of the training's end.

    a(t) = f(m + t)

    Args:
        schedule: f, the schedule of the training.
        to_step: m, the step to start from: the length of the training minus the number of steps
            to repeat.

    Raises:
        TypeError: `schedule` is not callable, or `to_step` is not an int.
        ValueError: `to_step` < 0.

    References:
        Renda, Frankle, Carbin 2020, "Comparing Rewinding and Fine-tuning in Neural Network
        Pruning": learning-rate rewinding.

    Example:
        >>> from dynopt_ray.schedules import linear
        >>> training = linear(0.4, num_steps=40, final=0.0)
        >>> retraining = rewind(training, to_step=30)
        >>> [round(retraining(step), 2) for step in (0, 5, 10)]
        [0.1, 0.05, 0.0]
    """

    schedule: Schedule
    _: KW_ONLY
    to_step: int

    def __post_init__(self) -> None:
        _check_schedule("rewind", "schedule", self.schedule)
        check_whole("rewind", "to_step", self.to_step, least=0)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return float(self.schedule(self.to_step + check_step(step)))


def _check_schedule(owner: str, name: str, schedule: object) -> None:
    if not callable(schedule):
        raise TypeError(
            f"{owner}: {name} must be a schedule, a function of the step, not {schedule!r}; "
            f"for a fixed value write constant({schedule!r})"
        )
