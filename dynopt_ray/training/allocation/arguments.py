"""Checks of the arguments of `allocate` and `sensitivity`."""

from collections.abc import Iterable, Mapping

from dynopt_ray.training.budgets import Budget
from dynopt_ray.training.numbers import share


def check_fractions(fractions: object) -> list[float]:
    """Return the fractions to remove, sorted and without duplicates.

    Raises:
        TypeError: the argument is not a sequence of numbers.
        ValueError: there are no fractions, or one is not in (0, 1).
    """
    if isinstance(fractions, str | Mapping) or not isinstance(fractions, Iterable):
        raise TypeError(
            f"sensitivity: fractions is {fractions!r}; pass numbers such as (0.25, 0.5)"
        )
    checked = []
    for fraction in fractions:
        checked.append(share("sensitivity: one of fractions", fraction))
    if not checked:
        raise ValueError("sensitivity: fractions is empty; give at least one, such as 0.5")
    return sorted(set(checked))


def check_limits(budget: object) -> None:
    """Refuse a budget on a cost that widths alone do not determine.

    Raises:
        TypeError: the argument is not a budget.
        ValueError: the budget limits non-zero weights.
    """
    if not isinstance(budget, Budget):
        raise TypeError(f"allocate: budget is {budget!r}; pass Budget(flops=0.5)")
    if budget.nonzero is not None:
        raise ValueError(
            f"allocate: {budget!r} limits nonzero, which depends on the units that stay and not "
            "on widths alone; limit params"
        )
