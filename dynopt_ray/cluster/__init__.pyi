from .learners import LearnerActor, LearnerStatus, Prediction, RemoteLearner
from .policy_training import PolicyProgress, train_policy
from .searching import (
    Point,
    PruneTrial,
    Range,
    SearchResult,
    SearchStorage,
    Space,
    TrialLog,
    check_config,
    check_limits,
    draws,
    make_scheduler,
    pareto_front,
    rate_range,
    search,
)
from .sessions import Session, check_can_start, check_reachable, session
from .trials import Measurement

__all__ = [
    "LearnerActor",
    "LearnerStatus",
    "Measurement",
    "Point",
    "PolicyProgress",
    "Prediction",
    "PruneTrial",
    "Range",
    "RemoteLearner",
    "SearchResult",
    "SearchStorage",
    "Session",
    "Space",
    "TrialLog",
    "check_can_start",
    "check_config",
    "check_limits",
    "check_reachable",
    "draws",
    "make_scheduler",
    "pareto_front",
    "rate_range",
    "search",
    "session",
    "train_policy",
]
