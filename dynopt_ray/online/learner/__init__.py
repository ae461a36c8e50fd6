"""The online learner and its parts."""

from dynopt_ray.online.learner.events import Quarantine, Rejected
from dynopt_ray.online.learner.guard import Guard, Verdict
from dynopt_ray.online.learner.learner import LearnResult, OnlineLearner
from dynopt_ray.online.learner.predictor import Predictor

__all__ = [
    "Guard",
    "LearnResult",
    "OnlineLearner",
    "Predictor",
    "Quarantine",
    "Rejected",
    "Verdict",
]
