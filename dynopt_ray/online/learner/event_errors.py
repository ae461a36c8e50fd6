"""The error of each event, which drift detectors monitor."""

import torch
from torch import Tensor

from dynopt_ray.tasks import LossFunction, is_classification


def event_errors(loss: LossFunction, output: Tensor, target: Tensor) -> list[float]:
    """Return one error per event: the fraction of wrong classes, or the loss of other targets.

    Args:
        loss: the loss function of the stream.
        output: (events, …), the network's outputs before it learns from the events.
        target: (events, …), the classes or other targets.

    Returns:
        One float per event, >= 0 for the usual losses; larger = worse.
    """
    if is_classification(output, target):
        wrong = output.argmax(dim=1) != target
        rates: list[float] = wrong.double().reshape(len(target), -1).mean(dim=1).tolist()
        return rates
    with torch.no_grad():
        return [
            float(loss(output[row : row + 1], target[row : row + 1])) for row in range(len(target))
        ]
