"""Refitting the consumers of removed units by least squares on their own inputs."""

from dynopt_ray.structure.refit.batches import calibration_batches
from dynopt_ray.structure.refit.before_and_after import BeforeAndAfter, reading_removed
from dynopt_ray.structure.refit.compensation import compensated
from dynopt_ray.structure.refit.masked_regression import keep_alike, masked_ridge_solve
from dynopt_ray.structure.refit.moments import Moments
from dynopt_ray.structure.refit.observers import ObservedInputs, Observer
from dynopt_ray.structure.refit.operations import Use
from dynopt_ray.structure.refit.outcome import Refits
from dynopt_ray.structure.refit.regression import RIDGE, best_ridges, ridge_solve

__all__ = [
    "RIDGE",
    "BeforeAndAfter",
    "Moments",
    "ObservedInputs",
    "Observer",
    "Refits",
    "Use",
    "best_ridges",
    "calibration_batches",
    "compensated",
    "keep_alike",
    "masked_ridge_solve",
    "reading_removed",
    "ridge_solve",
]
