"""Online learners as Ray actors: they survive the death of their process with their state."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynopt_ray import plugins
from dynopt_ray.online import Ack, BuildLearner, DurableLearner, Event


@dataclass(frozen=True)
class LearnerStatus:
    """How a learner is.

    Attributes:
        sequence: the last sequence number that is on disk and learned.
        quarantined: events that could not be learned from.
        snapshot_error: why the latest periodic snapshot failed, or None.
        pid: the actor's process on its node.
    """

    sequence: int
    quarantined: int
    snapshot_error: str | None
    pid: int


class LearnerActor:
    """What runs inside the actor: a durable learner, and a frozen copy of it that predicts.

    The class knows nothing of Ray. It needs two threads: one calls `learn` and what belongs to
    it, any others call `predict`, which never waits for learning. Built again on the same
    directory, after a crash or in a later session, it goes on where it was.

    Args:
        build: makes the learner, the same one every time; or its path `module:attribute`.
        directory: of its snapshot and journal. Where the actor may move to another node, all
            nodes must see it.
        snapshot_every: events between snapshots.
        num_threads: threads torch computes with. It is fixed, because another number may round
            sums differently and a replay has to come out the same to the bit.

    Raises:
        CheckpointError: the directory's contents are damaged or of another kind of learner.
        LearnerError: another process has the directory open.
        PluginError: `build` is a path that leads nowhere.
    """

    def __init__(
        self,
        build: BuildLearner | str,
        directory: str | os.PathLike[str],
        *,
        snapshot_every: int,
        num_threads: int,
    ) -> None:
        torch.set_num_threads(num_threads)
        if isinstance(build, str):
            build = plugins.import_attribute(build)
            assert callable(build)
        self._durable = DurableLearner(build, Path(directory), snapshot_every=snapshot_every)
        self._predictor = self._durable.freeze()
        self._snapshot_error: str | None = None

    def learn(self, first: int, events: Sequence[Event]) -> Ack:
        """Journal, learn and acknowledge events; predictions then come from what was learned."""
        ack = self._durable.learn(first, events)
        self._snapshot_error = ack.snapshot_error
        # One assignment, so a prediction has either the old network or the new one, never half.
        self._predictor = self._durable.freeze()
        return ack

    def predict(self, x: Any) -> Tensor:
        """The output of the network as it was after the last call of `learn`."""
        return self._predictor.predict(x)

    def snapshot(self) -> None:
        """Write the whole state to disk now."""
        self._durable.snapshot()
        self._snapshot_error = None

    def status(self) -> LearnerStatus:
        """How the learner is."""
        return LearnerStatus(
            sequence=self._durable.sequence,
            quarantined=self._durable.learner.quarantine.total,
            snapshot_error=self._snapshot_error,
            pid=os.getpid(),
        )

    def close(self) -> None:
        """Write a snapshot and let go of the directory."""
        self._durable.snapshot()
        self._durable.close()
