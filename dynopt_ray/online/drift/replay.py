"""A reaction that trains again on the latest events after drift."""

from typing import Any

import torch

from dynopt_ray.errors import CheckpointError, DataError
from dynopt_ray.online.drift.reaction import ReactingLearner
from dynopt_ray.transfers import to_device


class Replay:
    """Trains again on the latest events when the stream drifts.

    A mini-batch that the network cannot be trained on (a single event with BatchNorm) is left out.
    If several events are kept and all mini-batches are refused, the reaction raises the reason.

    Args:
        window: the number of latest events to replay, >= 1. A detector notices a drift only after
            some tens of events, so these already come from after the drift.
        passes: the number of times each event is replayed, >= 1.
        batch_size: the number of events per update, >= 1.

    Raises:
        ValueError: an argument is below 1.
    """

    def __init__(self, *, window: int = 64, passes: int = 2, batch_size: int = 16) -> None:
        for name, value in (("window", window), ("passes", passes), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"Replay: {name} is {value}; it must be at least 1")
        self._window = window
        self._passes = passes
        self._batch_size = batch_size

    @property
    def memory(self) -> int:
        """The number of events to replay."""
        return self._window

    def prepare(self, _learner: ReactingLearner, /) -> None:
        """Accept any learner."""

    def __call__(self, learner: ReactingLearner, *, drift: bool) -> None:
        """Replay the latest events on drift."""
        if not drift:
            return
        x, y = learner.memory.latest(self._window)
        refusal, num_updates = None, 0
        for _ in range(self._passes):
            order = torch.randperm(len(x), generator=learner.generator(), device="cpu")
            order = to_device(order, x.device)
            for rows in torch.split(order, self._batch_size):
                try:
                    learner.update(x[rows], y[rows])
                    num_updates += 1
                except DataError as error:
                    refusal = error
        if refusal is not None and not num_updates and min(len(x), self._batch_size) > 1:
            raise DataError(
                f"Replay: the network can be trained on none of the latest {len(x)} events: "
                f"{refusal}"
            ) from refusal

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the events to replay are part of the learner's state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that there is no state to restore.

        Raises:
            CheckpointError: there is one, so it is not one of this reaction.
        """
        if state:
            raise CheckpointError(f"Replay: the state is {state!r:.100}; this reaction has none")
