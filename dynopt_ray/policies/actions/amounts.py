"""The amounts of actions: rounding them to whole steps and checking fractions."""

import numpy as np

from dynopt_ray.arrays import FloatArray, IntArray


def at_least_one(count: FloatArray) -> IntArray:
    """Round counts to whole numbers of at least 1."""
    return np.maximum(1, np.rint(count)).astype(np.int64)


def check_fraction(action: str, fraction: float) -> None:
    """Refuse a fraction outside (0, 1].

    Raises:
        ValueError: the fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"{action}: fraction is {fraction}; it must be in (0, 1]")
