"""Snapshots: a learner's whole state in one file."""

import os
from typing import TYPE_CHECKING

from dynopt_ray.storage import read_state, write_state

if TYPE_CHECKING:
    from dynopt_ray.online.learner import OnlineLearner

_KIND = "learner"


def save(path: str | os.PathLike[str], learner: "OnlineLearner") -> None:
    """Write a learner's whole state to `path`, without pickle, whole or not at all.

    Raises:
        CheckpointError: it could not be written; what `path` held before is still there.
    """
    write_state(path, learner.state_dict(), kind=_KIND)


def load(path: str | os.PathLike[str], learner: "OnlineLearner") -> None:
    """Put the state in `path` into a learner that is built as the saved one was.

    Raises:
        CheckpointError: the file is missing, truncated, altered or foreign, or is the state of
            another kind of learner; the learner is as it was.
    """
    learner.load_state_dict(read_state(path, kind=_KIND))
