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
    population: Population,
    x_NI: Tensor,
    y_N: Tensor,
    *,
    valid_PN: Tensor | None = None,
    check: bool = True,
) -> PopulationMetrics:
    """Return loss, accuracy and confidence of every member, averaged in float64.

    Args:
        population: only read.
        x_NI: inputs of a split; (P, N, I) if each member has its own, which are not checked.
        y_N: labels; (P, N) if each member has its own.
        valid_PN: bool tensor, False for rows that do not count, if members have different numbers
            of rows. None counts all.
        check: whether to check the losses; see `train_steps`.

    Raises:
        DataError: the rows do not fit the population.
        DivergedError: a member's loss is NaN or infinite.
    """
    num_members, num_rows = len(population), y_N.shape[-1]
    if x_NI.ndim != 3:
        check_rows(population, x_NI, y_N)
    x_PNI, y_PN = x_NI.expand(num_members, -1, -1), y_N.expand(num_members, -1)
    widest = max(weight.shape[1] for weight in population.weights)
    rows_at_once = max(1, _VALUES_AT_ONCE // (widest * num_members))
    loss, right, confidence = torch.zeros(
        3, len(population), dtype=torch.float64, device=population.device
    )
    with torch.no_grad():
        for start in range(0, num_rows, rows_at_once):
            rows = slice(start, start + rows_at_once)
            outputs_POB = forward(population, x_PNI[:, rows])[1]
            targets = y_PN[:, rows]
            logs = outputs_POB.log_softmax(1).gather(1, targets[:, None])[:, 0]
            chosen = logs.exp()
            # `argmax` over a dimension that is not the last takes seven times as long.
            hits = outputs_POB.max(1).indices == targets
            if valid_PN is not None:
                counts = valid_PN[:, rows]
                logs, chosen, hits = logs * counts, chosen * counts, hits & counts
            loss -= logs.sum(1, dtype=torch.float64)
            confidence += chosen.sum(1, dtype=torch.float64)
            right += hits.sum(1)
    if check:
        check_finite(loss, f"on {num_rows} rows")
    total = num_rows if valid_PN is None else valid_PN.sum(1)
    return PopulationMetrics(*(value / total for value in (loss, right, confidence)))
