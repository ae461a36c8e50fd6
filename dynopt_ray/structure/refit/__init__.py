"""Refitting the consumers of removed units by least squares on their own inputs."""

from dynopt_ray.structure.refit.compensation import Replacement, compensated, reading_removed
from dynopt_ray.structure.refit.observers import Observer, Seen, Use
from dynopt_ray.structure.refit.regression import (
    RIDGE,
    Moments,
    best_ridges,
    masked_ridge_solve,
    ridge_solve,
)

__all__ = [
    "RIDGE",
    "Moments",
    "Observer",
    "Replacement",
    "Seen",
    "Use",
    "best_ridges",
    "compensated",
    "masked_ridge_solve",
    "reading_removed",
    "ridge_solve",
]
