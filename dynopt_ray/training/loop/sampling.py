"""Sample the training data that scores and compensation are computed on."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dynopt_ray.criteria import Batch
from dynopt_ray.structure import Inputs
from dynopt_ray.tasks import Task

SCORE_ROWS = 2048
CALIBRATION_ROWS = 4096
# Calibration keeps no activations for gradients, so its batches may be larger than those of
# training. For small networks the number of batches decides how long it takes.
_CALIBRATION_BATCH = 4


def sample_batches(task: Task, num_rows: int, generator: torch.Generator) -> list[Batch]:
    """Return random training batches with at least `num_rows` rows, or all rows if fewer."""
    batches: list[Batch] = []
    for batch in task.batches("train", generator=generator):
        batches.append(batch)
        num_rows -= len(batch[1])
        if num_rows <= 0:
            break
    return batches


def calibration_inputs(
    compensate: bool | Iterable[Inputs] | Tensor | None, task: Task, generator: torch.Generator
) -> list[Inputs] | None:
    """Return the batches of inputs that a cut is compensated with.

    Args:
        compensate: True draws 4,096 training samples, inputs are used as given, None or False
            disables compensation; see `prune`.
        task: where samples are drawn from.
        generator: draws the samples.

    Returns:
        The batches; None without compensation.

    Raises:
        TypeError: `compensate` is none of these.
    """
    if compensate is None or compensate is False:
        return None
    if compensate is True:
        return _joined([x for x, _ in sample_batches(task, CALIBRATION_ROWS, generator)])
    if isinstance(compensate, Tensor):
        return [compensate]
    if isinstance(compensate, str | Mapping) or not isinstance(compensate, Iterable):
        raise TypeError(
            f"compensate is {compensate!r:.60}; pass True, None, or a list of batches of inputs as "
            "the network takes them"
        )
    return list(compensate)


def _joined(batches: list[Inputs]) -> list[Inputs]:
    """Return the same rows in batches that are larger, if these are tensors."""
    if not all(isinstance(batch, Tensor) for batch in batches):
        return batches
    some = range(0, len(batches), _CALIBRATION_BATCH)
    return [torch.cat(batches[first : first + _CALIBRATION_BATCH]) for first in some]  # type: ignore[arg-type]
