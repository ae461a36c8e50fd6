"""Schedules: pure functions of the step, for learning rates, sparsity and ε alike.

A schedule maps a step (0, 1, 2, …) to a float. The built-in schedules are immutable: they can be
pickled, compare equal if their arguments are equal, and print as the call that makes them.

Example:
    >>> from dynopt_ray.schedules import cosine, warmup
    >>> rate = warmup(cosine(0.1, num_steps=90), num_steps=10)
    >>> [round(rate(step), 4) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.05, 0.1, 0.05, 0.0]
"""

from dynopt_ray.schedules.article import article_step
from dynopt_ray.schedules.base import Schedule
from dynopt_ray.schedules.compose import rewind, sequence, warmup
from dynopt_ray.schedules.config import from_config
from dynopt_ray.schedules.decay import constant, cosine, exponential, linear, polynomial, step
from dynopt_ray.schedules.torch_scheduler import ScheduleLR, to_torch

__all__ = [
    "Schedule",
    "ScheduleLR",
    "article_step",
    "constant",
    "cosine",
    "exponential",
    "from_config",
    "linear",
    "polynomial",
    "rewind",
    "sequence",
    "step",
    "to_torch",
    "warmup",
]
