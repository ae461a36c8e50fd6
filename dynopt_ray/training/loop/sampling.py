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


def sample_batches(
    task: Task, num_rows: int, generator: torch.Generator, batch_size: int | None = None
) -> list[Batch]:
    """Return random training batches with at least `num_rows` rows, or all rows if fewer.

    `batch_size` is the number of rows per batch; None is the task's.
    """
    batches: list[Batch] = []
    for batch in task.batches("train", batch_size, generator=generator):
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
        own: int | None = getattr(task.sources["train"], "batch_size", None)
        size = None if own is None else _CALIBRATION_BATCH * own  # a loader makes its own batches
        return [x for x, _ in sample_batches(task, CALIBRATION_ROWS, generator, size)]
    if isinstance(compensate, Tensor):
        return [compensate]
    if isinstance(compensate, str | Mapping) or not isinstance(compensate, Iterable):
        raise TypeError(
            f"compensate is {compensate!r:.60}; pass True, None, or a list of batches of inputs as "
            "the network takes them"
        )
    return list(compensate)
