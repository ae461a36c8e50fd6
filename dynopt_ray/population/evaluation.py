"""Evaluating all members on one split at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.population.stack import Population
from dynopt_ray.population.steps import check_finite, check_rows, forward

_VALUES_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False)
class PopulationMetrics:
    """The `Metrics` of all members on a whole split, as tensors (P,).

    Attributes:
        loss: mean cross-entropy.
        accuracy: fraction of correct predictions, in [0, 1].
        confidence: mean probability given to the right class, in [0, 1].
    """

    loss: Tensor
    accuracy: Tensor
    confidence: Tensor

    @property
    def smooth(self) -> Tensor:
        """The mean of accuracy and confidence."""
        return (self.accuracy + self.confidence) / 2


def evaluate(
    population: Population, x_NI: Tensor, y_N: Tensor, *, check: bool = True
) -> PopulationMetrics:
    """Return loss, accuracy and confidence of every member, averaged in float64.

    Args:
        population: only read.
        x_NI: inputs of a split.
        y_N: labels.
        check: whether to check the losses; see `train_steps`.

    Raises:
        DataError: the rows do not fit the population.
        DivergedError: a member's loss is NaN or infinite.
    """
    check_rows(population, x_NI, y_N)
    widest = max(weight.shape[1] for weight in population.weights)
    rows_at_once = max(1, _VALUES_AT_ONCE // (widest * len(population)))
    loss, right, confidence = torch.zeros(
        3, len(population), dtype=torch.float64, device=population.device
    )
    with torch.no_grad():
        for start in range(0, len(y_N), rows_at_once):
            x, y = x_NI[start : start + rows_at_once], y_N[start : start + rows_at_once]
            outputs_POB = forward(population, x[None])[1]
            targets = y.expand(len(population), -1)
            logs = outputs_POB.log_softmax(1).gather(1, targets[:, None])[:, 0]
            loss -= logs.sum(1, dtype=torch.float64)
            confidence += logs.exp().sum(1, dtype=torch.float64)
            # `argmax` over a dimension that is not the last takes seven times as long.
            right += (outputs_POB.max(1).indices == targets).sum(1)
    if check:
        check_finite(loss, f"on {len(y_N)} rows")
    return PopulationMetrics(*(value / len(y_N) for value in (loss, right, confidence)))
