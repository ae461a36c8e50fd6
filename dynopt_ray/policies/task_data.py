"""What policies need to know about a task's data."""

from itertools import islice

from dynopt_ray.structure import Inputs
from dynopt_ray.tasks import Task

NUM_COMPENSATION_ROWS = 512
"""The number of training rows that refits after a shrink use."""


def compensation_inputs(task: Task) -> list[Inputs]:
    """Return inputs of the first training batches: `NUM_COMPENSATION_ROWS` rows or a few more."""
    batches = task.batches("train")
    inputs, targets = next(batches)
    num_more = -(-NUM_COMPENSATION_ROWS // len(targets)) - 1
    return [inputs, *(inputs for inputs, _ in islice(batches, num_more))]


def num_training_rows(task: Task) -> int:
    """Return the number of training rows."""
    return sum(len(targets) for _, targets in task.batches("train"))
