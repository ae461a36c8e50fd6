"""Training again on the latest events after drift."""

from contextlib import suppress
from typing import Any

import torch

from dynopt_ray.errors import DataError
from dynopt_ray.online.drift.reaction import ReactingLearner


class Replay:
    """Trains on the latest events once more when the stream drifts.

    A mini-batch that the network cannot be trained on (one event through BatchNorm) is left out.

    Args:
        window: how many of the latest events are replayed. A detector needs some tens of
            events to notice a drift, so the latest ones are of the new kind.
        passes: how often each is replayed.
        batch_size: events per update.

    Raises:
        ValueError: an argument below 1.
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
        """The events to replay."""
        return self._window

    def prepare(self, _learner: ReactingLearner, /) -> None:
        """Any learner will do."""

    def __call__(self, learner: ReactingLearner, *, drift: bool) -> None:
        """Replay on drift."""
        if not drift:
            return
        x, y = learner.memory.latest(self._window)
        for _ in range(self._passes):
            order = torch.randperm(len(x), generator=learner.generator()).to(x.device)
            for rows in torch.split(order, self._batch_size):
                with suppress(DataError):
                    learner.update(x[rows], y[rows])

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what is replayed belongs to the learner."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
