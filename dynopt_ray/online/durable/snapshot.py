"""Snapshots: the whole state of a learner in one file."""

import os
from typing import TYPE_CHECKING

from dynopt_ray.storage import read_state, write_state

if TYPE_CHECKING:
    from dynopt_ray.online.learner import OnlineLearner

_KIND = "learner"


def save(path: str | os.PathLike[str], learner: "OnlineLearner") -> None:
    """Write the whole state of a learner to `path`, atomically and without pickle.

    Raises:
        CheckpointError: the state could not be written; `path` keeps its previous content.
    """
    write_state(path, learner.state_dict(), kind=_KIND)


def load(path: str | os.PathLike[str], learner: "OnlineLearner") -> None:
    """Load the state in `path` into a learner that was built like the saved one.

    Raises:
        CheckpointError: the file is missing, truncated, altered or foreign, or it holds the state
            of another kind of learner. The learner has not been changed.
    """
    learner.load_state_dict(read_state(path, kind=_KIND))
