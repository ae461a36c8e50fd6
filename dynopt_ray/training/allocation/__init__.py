"""Allocation: how sensitive the loss is to each width group, and widths that meet a budget."""

from dynopt_ray.training.allocation.allocator import allocate
from dynopt_ray.training.allocation.plots import plot_sensitivity
from dynopt_ray.training.allocation.predictions import AllocatedPoint, allocated_points
from dynopt_ray.training.allocation.sensitivities import sensitivity

__all__ = [
    "AllocatedPoint",
    "allocate",
    "allocated_points",
    "plot_sensitivity",
    "sensitivity",
]
