"""Budgets and other targets of pruning and growing, and how they are met."""

from dynopt_ray.training.budgets.latency import first_within, measured_choices
from dynopt_ray.training.budgets.nonzero import NonzeroCount, is_nonzero
from dynopt_ray.training.budgets.targets import (
    Budget,
    Fraction,
    Target,
    Threshold,
    asks_latency,
    fractions_hint,
)
from dynopt_ray.training.budgets.widths import (
    ROUNDING,
    Widths,
    larger_widths,
    share_of,
    wanted_widths,
    widths_at,
)

__all__ = [
    "ROUNDING",
    "Budget",
    "Fraction",
    "NonzeroCount",
    "Target",
    "Threshold",
    "Widths",
    "asks_latency",
    "first_within",
    "fractions_hint",
    "is_nonzero",
    "larger_widths",
    "measured_choices",
    "share_of",
    "wanted_widths",
    "widths_at",
]
