# ruff: noqa: N801
"""Schedules with one formula: constant, polynomial, exponential, step, cosine, linear.

They are classes with lower-case names, like `functools.partial`. So the repr of a schedule is the
call that makes it, and no factory functions have to repeat the arguments of the classes.
"""

import math
from dataclasses import KW_ONLY, dataclass

from dynopt_ray.schedules.base import between, check_count, check_number, check_step, progress


@dataclass(frozen=True)
class constant:
    """The same value at every step: a(t) = a₀, for t >= 0.

    Args:
        value: a₀, finite.

    Raises:
        TypeError: `value` is not a number.
        ValueError: `value` is not finite.

    Example:
        >>> constant(0.1)(1_000)
        0.1
    """

    value: float

    def __post_init__(self) -> None:
        check_number("constant", "value", self.value)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        check_step(step)
        return float(self.value)


@dataclass(frozen=True)
class polynomial:
    """A change from `initial` to `final` that follows a power of the remaining time.

    a(t) = a₁ + (a₀ − a₁)·(1 − t/T)^β for 0 <= t <= T, and a₁ after T.

    With `final=0`, the default, this is exactly the formula a₀·(1 − t/T)^β that the source
    article (see `article_step`) calls "exponential decay". This class is named after the formula.

    With power 3 it is the sparsity schedule of Zhu & Gupta: sparsity rises fast while many
    weights are redundant, and slowly towards the end.

    Args:
        initial: a₀, the value at step 0.
        num_steps: T, the step at which `final` is reached.
        power: β > 0; 1 is a straight line.
        final: a₁, the value from step T on.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `num_steps` < 1, `power` <= 0, or a value is not finite.

    References:
        Zhu & Gupta 2017, "To prune, or not to prune", eq. 1: initial sparsity s_i, final
        sparsity s_f, power 3. For their starting step t₀, use `sequence` with a `constant` first.

    Example:
        >>> removed = polynomial(0.0, num_steps=100, power=3, final=0.9)
        >>> [round(removed(step), 4) for step in (0, 20, 50, 100, 200)]
        [0.0, 0.4392, 0.7875, 0.9, 0.9]
    """

    initial: float
    _: KW_ONLY
    num_steps: int
    power: float = 1.0
    final: float = 0.0

    def __post_init__(self) -> None:
        check_number("polynomial", "initial", self.initial)
        check_count("polynomial", "num_steps", self.num_steps)
        check_number("polynomial", "power", self.power, above=0.0)
        check_number("polynomial", "final", self.final)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        left = (1.0 - progress(step, self.num_steps)) ** self.power
        return between(self.final, self.initial, left)


@dataclass(frozen=True)
class exponential:
    """A value that is multiplied by the same factor at every step: a(t) = a₀·γ^t, for t >= 0.

    The article uses the name "exponential decay" for another formula; see `polynomial`.

    Args:
        initial: a₀, the value at step 0.
        gamma: γ in (0, 1], the factor per step.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `gamma` is outside (0, 1] (above 1 the value would grow without bound), or a
            value is not finite.

    Example:
        >>> exponential(1.0, gamma=0.5)(3)
        0.125
    """

    initial: float
    _: KW_ONLY
    gamma: float

    def __post_init__(self) -> None:
        check_number("exponential", "initial", self.initial)
        check_number("exponential", "gamma", self.gamma, above=0.0, most=1.0)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return float(self.initial * self.gamma ** check_step(step))


@dataclass(frozen=True)
class step:
    """A value that is multiplied by a factor once per period: a(t) = a₀·γ^⌊t/S⌋, for t >= 0.

    This is the usual step decay. The article prints another formula under that name; see
    `article_step`.

    Args:
        initial: a₀, the value during the first period.
        gamma: γ in (0, 1], the factor per period.
        period_steps: S, the length of a period in steps.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `gamma` is outside (0, 1], `period_steps` < 1, or a value is not finite.

    Example:
        >>> halved = step(0.8, gamma=0.5, period_steps=10)
        >>> halved(9), halved(10), halved(20)
        (0.8, 0.4, 0.2)
    """

    initial: float
    _: KW_ONLY
    gamma: float
    period_steps: int

    def __post_init__(self) -> None:
        check_number("step", "initial", self.initial)
        check_number("step", "gamma", self.gamma, above=0.0, most=1.0)
        check_count("step", "period_steps", self.period_steps)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return float(self.initial * self.gamma ** (check_step(step) // self.period_steps))


@dataclass(frozen=True)
class cosine:
    """A change from `initial` to `final` along half a period of a cosine.

    a(t) = a₁ + (a₀ − a₁)·(1 + cos(π·t/T))/2 for 0 <= t <= T, and a₁ after T.

    Args:
        initial: a₀, the value at step 0.
        num_steps: T, the step at which `final` is reached.
        final: a₁, the value from step T on.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `num_steps` < 1, or a value is not finite.

    References:
        Loshchilov & Hutter 2017, "SGDR", eq. 5, for a single cycle. After T the value stays at
        `final`, whereas torch's CosineAnnealingLR rises again.

    Example:
        >>> round(cosine(0.1, num_steps=100)(50), 9)
        0.05
    """

    initial: float
    _: KW_ONLY
    num_steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        check_number("cosine", "initial", self.initial)
        check_count("cosine", "num_steps", self.num_steps)
        check_number("cosine", "final", self.final)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        left = (1.0 + math.cos(math.pi * progress(step, self.num_steps))) / 2.0
        return between(self.final, self.initial, left)


@dataclass(frozen=True)
class linear:
    """A change from `initial` to `final` along a straight line.

    a(t) = a₀ + (a₁ − a₀)·t/T for 0 <= t <= T, and a₁ after T.

    Args:
        initial: a₀, the value at step 0.
        num_steps: T, the step at which `final` is reached.
        final: a₁, the value from step T on.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `num_steps` < 1, or a value is not finite.

    Example:
        >>> epsilon = linear(1.0, num_steps=1_000, final=0.05)
        >>> epsilon(0), epsilon(1_000), epsilon(9_999)
        (1.0, 0.05, 0.05)
    """

    initial: float
    _: KW_ONLY
    num_steps: int
    final: float

    def __post_init__(self) -> None:
        check_number("linear", "initial", self.initial)
        check_count("linear", "num_steps", self.num_steps)
        check_number("linear", "final", self.final)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return between(self.initial, self.final, progress(step, self.num_steps))
