"""The object inside a learner's Ray actor, which keeps its state when its process dies."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynopt_ray import plugins
from dynopt_ray.cluster.resources import use_resources
from dynopt_ray.devices import Determinism
from dynopt_ray.errors import DivergedError, PluginError
from dynopt_ray.online import Ack, BuildLearner, DurableLearner, Event, LearnResult


@dataclass(frozen=True)
class LearnerStatus:
    """The status of a learner.

    Attributes:
        sequence: the last sequence number that is on disk and learned.
        quarantined: number of events that could not be learned from.
        snapshot_error: why the latest periodic snapshot failed, or None.
        pid: the id of the actor's process on its node.
    """

    sequence: int
    quarantined: int
    snapshot_error: str | None
    pid: int


class LearnerActor:
    """A durable learner, and a frozen copy of its network that predicts.

    The class does not depend on Ray. One thread calls `learn`, `snapshot` and `close`. Other
    threads may call `predict` and `status`, which never wait for learning. An object that is built
    on the same directory later, for example after a crash, continues from the last state.

    Args:
        build: builds the learner; or its path `module:attribute`. Every call must build the same
            learner.
        directory: directory of the snapshot and the journal. If the actor may move to another
            node, it must be a directory that all nodes share.
        snapshot_every: number of events between snapshots, or None; see `DurableLearner`.
        skip: sequence numbers of events that are not learned; see `DurableLearner`.
        num_threads: number of threads that torch uses. It is fixed, because another number may
            round sums differently, and a replay must give the same result bit for bit.
        num_gpus: number of GPUs that were reserved for this process, which limits it to them. None
            limits nothing.
        deterministic: whether a GPU gives the same bits for the same events; see `Determinism`. The
            CPU always does.

    Raises:
        CheckpointError: the content of the directory is damaged, or belongs to another kind of
            learner.
        LearnerError: another process has the directory open.
        PluginError: `build` is a path that cannot be imported, or leads to no function.
    """

    def __init__(
        self,
        build: BuildLearner | str,
        directory: str | os.PathLike[str],
        *,
        snapshot_every: int | None,
        num_threads: int,
        num_gpus: float | None = None,
        deterministic: bool = False,
        skip: Collection[int] = (),
    ) -> None:
        if num_gpus is not None:
            use_resources(num_threads, num_gpus)
        torch.set_num_threads(num_threads)
        Determinism(deterministic).begin()
        if isinstance(build, str):
            path, build = build, plugins.import_attribute(build)
            if not callable(build):
                raise PluginError(
                    f"build={path!r} is {build!r:.60}, not a function; give the path of a function "
                    "without arguments that returns an OnlineLearner"
                )
        self._durable = DurableLearner(
            build, Path(directory), snapshot_every=snapshot_every, skip=skip
        )
        self._snapshots = snapshot_every is not None
        self._predictor = self._durable.freeze()
        self._snapshot_error: str | None = None

    def learn(self, first: int, events: Sequence[Event]) -> Ack:
        """Journal, learn and acknowledge events. Later predictions use the updated network."""
        ack = self._durable.learn(first, events)
        self._snapshot_error = ack.snapshot_error
        # A single assignment, so that a prediction uses either the old network or the new one.
        self._predictor = self._durable.freeze()
        return replace(ack, results=tuple(map(_on_the_cpu, ack.results)))

    def predict(self, x: Any) -> Tensor:
        """Return the output of the network after the last call of `learn`, on the CPU."""
        return self._predictor.predict(x).cpu()

    def snapshot(self) -> None:
        """Write the whole state to disk now."""
        self._durable.snapshot()
        self._snapshot_error = None

    def status(self) -> LearnerStatus:
        """Return the present status of the learner."""
        return LearnerStatus(
            sequence=self._durable.sequence,
            quarantined=self._durable.learner.quarantine.total,
            snapshot_error=self._snapshot_error,
            pid=os.getpid(),
        )

    def close(self) -> None:
        """Write a snapshot, unless `snapshot_every` is None, and release the directory."""
        if self._snapshots:
            self._durable.snapshot()
        self._durable.close()


def _on_the_cpu(result: LearnResult | DivergedError | None) -> LearnResult | DivergedError | None:
    """Return a result that a driver without a GPU can read."""
    if not isinstance(result, LearnResult) or result.output.device.type == "cpu":
        return result
    return replace(result, output=result.output.cpu())
