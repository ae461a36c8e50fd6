"""Checks of numbers that callers pass."""

import math
from numbers import Integral, Real


def whole(name: str, value: object, *, least: int) -> int:
    """Return a count as an int. NumPy integers are accepted too.

    Raises:
        TypeError: the value is not an integer, or is True or False.
        ValueError: the value is less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; it must be a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
    return int(value)


def share(name: str, value: object) -> float:
    """Return a fraction in (0, 1) as a float.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is outside (0, 1).
    """
    real = _real(name, value)
    if not 0 < real < 1:
        raise ValueError(f"{name} is {value!r}; it must lie between 0 (nothing) and 1 (all)")
    return real


def positive(name: str, value: object) -> float:
    """Return a finite number above 0 as a float.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is not finite, or not above 0.
    """
    real = _real(name, value)
    if not (math.isfinite(real) and real > 0):
        raise ValueError(f"{name} is {value!r}; it must be finite and > 0")
    return real


def not_negative(name: str, value: object) -> float:
    """Return a finite number that is at least 0 as a float.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is not finite, or below 0.
    """
    real = finite(name, value)
    if real < 0:
        raise ValueError(f"{name} is {value!r}; it must be at least 0")
    return real


def finite(name: str, value: object) -> float:
    """Return a finite number as a float.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is not finite.
    """
    real = _real(name, value)
    if not math.isfinite(real):
        raise ValueError(f"{name} is {value!r}; it must be finite")
    return real


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; it must be a number")
    return float(value)
