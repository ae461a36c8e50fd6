"""Everything that runs on Ray: sessions, searches, and learners as actors."""

from dynopt_ray.cluster.learner import LearnerActor, Status
from dynopt_ray.cluster.prune_trial import PruneTrial
from dynopt_ray.cluster.remote import Prediction, RemoteLearner
from dynopt_ray.cluster.search import search
from dynopt_ray.cluster.session import Session, session
from dynopt_ray.cluster.trials import Measurement, SearchResult

__all__ = [
    "LearnerActor",
    "Measurement",
    "Prediction",
    "PruneTrial",
    "RemoteLearner",
    "SearchResult",
    "Session",
    "Status",
    "search",
    "session",
]
