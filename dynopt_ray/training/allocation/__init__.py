"""Allocation: what each width group can spare, and the widths that meet a budget."""

from dynopt_ray.training.allocation.allocator import allocate
from dynopt_ray.training.allocation.plots import plot_sensitivity
from dynopt_ray.training.allocation.sensitivities import sensitivity

__all__ = [
    "allocate",
    "plot_sensitivity",
    "sensitivity",
]
