from .learners import check_learner
from .runner import make_stream, prepare, streamed
from .spec import LearnerSettings, StreamSettings, StreamSpec

__all__ = [
    "LearnerSettings",
    "StreamSettings",
    "StreamSpec",
    "check_learner",
    "make_stream",
    "prepare",
    "streamed",
]
