"""Losses of a stream: what is minimised, and the error that drift detectors watch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dynopt_ray.errors import UnknownNameError

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) of a mini-batch -> their mean loss, a scalar."""

_LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy}


def build_loss(loss: str | Loss) -> Loss:
    """A loss from its name, or the callable itself.

    Raises:
        UnknownNameError: no loss of this name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in _LOSSES:
        raise UnknownNameError("loss", loss, _LOSSES)
    return _LOSSES[loss]


def is_classification(output: Tensor, target: Tensor) -> bool:
    """Whether targets are classes: whole numbers, one dimension less than the scores."""
    return not target.is_floating_point() and output.ndim == target.ndim + 1


def event_errors(loss: Loss, output: Tensor, target: Tensor) -> list[float]:
    """One error per event: the share misclassified, or for other targets the loss.

    Args:
        loss: the stream's loss.
        output: (events, …) of the network before it learns from them.
        target: (events, …).

    Returns:
        A float per event, >= 0 for the usual losses; larger = worse.
    """
    if is_classification(output, target):
        wrong = output.argmax(dim=1) != target
        rates: list[float] = wrong.double().reshape(len(target), -1).mean(dim=1).tolist()
        return rates
    with torch.no_grad():
        return [
            float(loss(output[row : row + 1], target[row : row + 1])) for row in range(len(target))
        ]
