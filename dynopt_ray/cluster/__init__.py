"""Everything that runs on Ray: sessions, and learners as actors."""

from dynopt_ray.cluster.learner import LearnerActor, Status
from dynopt_ray.cluster.remote import Prediction, RemoteLearner
from dynopt_ray.cluster.session import Session, session

__all__ = ["LearnerActor", "Prediction", "RemoteLearner", "Session", "Status", "session"]
