"""A frozen copy of a learner's network, for predictions while the learner continues to learn."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.online.learner.events import as_batch, event_tensor
from dynopt_ray.online.learner.whole_numbers import WholeNumbers


class Predictor:
    """Predicts with a copy of a network as it is now. Safe to share between threads.

    Args:
        model: the network; it is copied.
        event_shape: the shape of one event, or None if the stream has had no good event yet.
        dtype: the floating type in which the network computes.
        device: the device of the network.
        events: the number of events that the learner has received, including quarantined ones.
        whole_as_floats: whether the network needs whole numbers as floats; None to find out.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        event_shape: torch.Size | None,
        dtype: torch.dtype,
        device: torch.device,
        events: int,
        whole_as_floats: bool | None = None,
    ) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        self._event_shape = event_shape
        self._dtype = dtype
        self._device = device
        self.events = events
        self._whole_numbers = WholeNumbers(dtype, device, self._outputs)
        self._whole_numbers.as_floats = whole_as_floats

    def predict(self, x: Any) -> Tensor:
        """Return the network's output for one event or for a mini-batch of events.

        If the network draws random numbers even in eval mode, this call advances torch's global
        generator, which all threads share. `OnlineLearner.predict` has no such side effect.

        Raises:
            DataError: x does not have the shape of the stream's events.
        """
        batch, single = as_batch(
            event_tensor(x, dtype=self._dtype, device=self._device), self._event_shape
        )
        output = self._outputs(self._whole_numbers(batch))
        return output[0] if single else output

    def _outputs(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = self._model(x)
        return output
