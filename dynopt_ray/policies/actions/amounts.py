"""The amounts of actions: rounding them to whole steps and checking fractions."""

import numpy as np

from dynopt_ray.arrays import FloatArray, IntArray


def at_least_one(count: FloatArray) -> IntArray:
    """Round counts to whole numbers of at least 1."""
    return np.maximum(1, np.rint(count)).astype(np.int64)


def check_fraction(
    action: str, fraction: float, *, whole: bool = True, name: str = "fraction"
) -> None:
    """Refuse a fraction outside (0, 1].

    Args:
        action: the action's name.
        fraction: the fraction.
        whole: whether 1 is allowed.
        name: the name of the fraction in messages.

    Raises:
        ValueError: the fraction is out of this range.
    """
    if not 0 < fraction <= 1:
        interval = "(0, 1]" if whole else "(0, 1)"
        raise ValueError(f"{action}: {name} is {fraction}; it must be in {interval}")
    if fraction == 1 and not whole:
        raise ValueError(
            f"{action}: {name} is {fraction}, so the action would never be legal; give less than 1"
        )
