from .actor import LearnerActor, LearnerStatus
from .handle import Prediction, RemoteLearner

__all__ = [
    "LearnerActor",
    "LearnerStatus",
    "Prediction",
    "RemoteLearner",
]
