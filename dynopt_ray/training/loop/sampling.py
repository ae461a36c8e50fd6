"""Which training data scores and compensation are computed on."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dynopt_ray.criteria import Batch
from dynopt_ray.structure import Inputs
from dynopt_ray.tasks import Task

SCORE_ROWS = 2048
CALIBRATION_ROWS = 4096


def sample_batches(task: Task, num_rows: int, generator: torch.Generator) -> list[Batch]:
    """Random training batches that hold at least so many rows, or all there are."""
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
    """What a cut is compensated with: drawn for True, as given, or nothing; see `prune`.

    Raises:
        TypeError: neither of these.
    """
    if compensate is None or compensate is False:
        return None
    if compensate is True:
        return [x for x, _ in sample_batches(task, CALIBRATION_ROWS, generator)]
    if isinstance(compensate, Tensor):
        return [compensate]
    if isinstance(compensate, str | Mapping) or not isinstance(compensate, Iterable):
        raise TypeError(
            f"compensate is {compensate!r:.60}; pass True, None, or a list of inputs, each of what "
            "the network is called with"
        )
    return list(compensate)
