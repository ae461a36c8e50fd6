"""Retraining between edits, optionally with distillation from a teacher."""

from dynopt_ray.training.retraining.distillation import Distillation
from dynopt_ray.training.retraining.measured_parts import TrainingInParts
from dynopt_ray.training.retraining.retraining import Retraining, as_retraining, default_optimizer

__all__ = [
    "Distillation",
    "Retraining",
    "TrainingInParts",
    "as_retraining",
    "default_optimizer",
]
