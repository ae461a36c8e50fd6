"""Everything that runs on Ray: sessions, searches, policy training, and learners as actors."""

from typing import TYPE_CHECKING, Any

from dynopt_ray.cluster.learner import LearnerActor, Status
from dynopt_ray.cluster.prune_trial import PruneTrial
from dynopt_ray.cluster.remote import Prediction, RemoteLearner
from dynopt_ray.cluster.search import search
from dynopt_ray.cluster.session import Session, session
from dynopt_ray.cluster.trials import Measurement, SearchResult

if TYPE_CHECKING:
    from dynopt_ray.cluster.policy_training import PolicySettings, train_policy

__all__ = [
    "LearnerActor",
    "Measurement",
    "PolicySettings",
    "Prediction",
    "PruneTrial",
    "RemoteLearner",
    "SearchResult",
    "Session",
    "Status",
    "search",
    "session",
    "train_policy",
]


def __getattr__(name: str) -> Any:
    """RLlib takes seconds to import: only who trains policies waits for it."""
    if name in ("PolicySettings", "train_policy"):
        from dynopt_ray.cluster import policy_training

        return getattr(policy_training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
