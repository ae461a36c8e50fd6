"""What policies need to know of a task's data."""

from itertools import islice

from dynopt_ray.structure import Inputs
from dynopt_ray.tasks import Task

NUM_COMPENSATION_ROWS = 512
"""Training rows that refits after a shrink look at."""


def compensation_inputs(task: Task) -> list[Inputs]:
    """The inputs of the first training batches: `NUM_COMPENSATION_ROWS` rows or a few more."""
    batches = task.batches("train")
    inputs, targets = next(batches)
    num_more = -(-NUM_COMPENSATION_ROWS // len(targets)) - 1
    return [inputs, *(inputs for inputs, _ in islice(batches, num_more))]


def num_training_rows(task: Task) -> int:
    """How many rows there are to learn from."""
    return sum(len(targets) for _, targets in task.batches("train"))
