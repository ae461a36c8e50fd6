from .learners import check_learner
from .runner import make_stream, run_stream
from .spec import KIND, LearnerSettings, StreamSettings, StreamSpec, stream_work

__all__ = [
    "KIND",
    "LearnerSettings",
    "StreamSettings",
    "StreamSpec",
    "check_learner",
    "make_stream",
    "run_stream",
    "stream_work",
]
