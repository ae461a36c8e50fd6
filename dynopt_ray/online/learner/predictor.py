"""A frozen copy of a learner's network, for predictions while learning goes on."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.online.learner.events import as_batch, event_tensor


class Predictor:
    """Predicts with the network as it was when this was made; safe to share between threads.

    Args:
        model: the network; it is copied.
        event_shape: the shape of one event, or None while the stream has shown none.
        dtype: the floating type the network computes in.
        device: where it computes.
        events: how many events it has learned from.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        event_shape: torch.Size | None,
        dtype: torch.dtype,
        device: torch.device,
        events: int,
    ) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        self._event_shape = event_shape
        self._dtype = dtype
        self._device = device
        self.events = events

    def predict(self, x: Any) -> Tensor:
        """The network's output for one event, or for a mini-batch of events.

        A network that draws random numbers even in eval mode is not served purely here: the
        generator is shared by all threads. `OnlineLearner.predict` is pure for it too.

        Raises:
            DataError: x does not have the stream's shape.
        """
        batch, single = as_batch(
            event_tensor(x, dtype=self._dtype, device=self._device), self._event_shape
        )
        with torch.no_grad():
            output: Tensor = self._model(batch)
        return output[0] if single else output
