from .actor import LearnerActor, Status
from .handle import Prediction, RemoteLearner

__all__ = [
    "LearnerActor",
    "Prediction",
    "RemoteLearner",
    "Status",
]
