# ruff: noqa: N801
"""The step decay of the source article, exactly as the article prints it.

The article is "Dynamic optimisation of neural networks: pruning, learning-rate schedules, dynamic
structure, online learning".
"""

from dataclasses import KW_ONLY, dataclass

from dynopt_ray.schedules.base import check_count, check_number, check_step


@dataclass(frozen=True)
class article_step:
    """The article's "step decay": a(t) = a₀·(1 − t/(T mod S)), and 0 once t > T mod S.

    In the printed formula T mod S does not depend on the step. The value therefore falls linearly
    to zero within less than one period and stays there. The formula is included so that the
    article's runs can be repeated. The usual step decay is `step`: a₀·γ^⌊t/S⌋.

    Args:
        initial: a₀, the value at step 0.
        num_steps: T, the number of steps of the whole run.
        period_steps: S, the length of a period in steps; it must not divide T.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: T mod S = 0, so that the formula divides by zero; `num_steps` or
            `period_steps` < 1; or `initial` is not finite.

    Example:
        >>> rate = article_step(0.1, num_steps=100, period_steps=30)
        >>> [round(rate(step), 4) for step in (0, 5, 10, 11)]
        [0.1, 0.05, 0.0, 0.0]
    """

    initial: float
    _: KW_ONLY
    num_steps: int
    period_steps: int

    def __post_init__(self) -> None:
        check_number("article_step", "initial", self.initial)
        check_count("article_step", "num_steps", self.num_steps)
        check_count("article_step", "period_steps", self.period_steps)
        if self.num_steps % self.period_steps == 0:
            raise ValueError(
                f"article_step: num_steps mod period_steps is {self.num_steps} mod "
                f"{self.period_steps} = 0, and the article's formula divides by it. Choose a "
                f"period that does not divide num_steps, or use step(initial, gamma=…, "
                f"period_steps={self.period_steps})"
            )

    def __call__(self, step: int) -> float:
        """The value at a step."""
        index, end = check_step(step), self.num_steps % self.period_steps
        return float(self.initial * (1.0 - index / end)) if index < end else 0.0
