"""The error of each event, which drift detectors watch."""

import torch
from torch import Tensor

from dynopt_ray.tasks import LossFunction, is_classification


def event_errors(loss: LossFunction, output: Tensor, target: Tensor) -> list[float]:
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
