"""What policies need to know about a task's data."""

from dynopt_ray.criteria import Batch
from dynopt_ray.errors import DataError
from dynopt_ray.tasks import Task, take_rows

NUM_COMPENSATION_ROWS = 512
"""The number of training rows that refits after a shrink use."""


def compensation_batches(task: Task) -> list[Batch]:
    """Return the first `NUM_COMPENSATION_ROWS` training rows and their targets, in batches.

    A refit judges on every second row of a batch. The batches of arrays have an even number of
    rows, so that these are the same rows whatever the task's batch size. Stacked networks, which
    get all rows in one batch, then make the same refit.
    """
    chosen: list[Batch] = []
    room = NUM_COMPENSATION_ROWS
    for inputs, targets in task.batches("train", _even_batch_size(task)):
        chosen.append((take_rows(inputs, room), targets[:room]))
        room -= len(targets)
        if room <= 0:
            break
    return chosen


def _even_batch_size(task: Task) -> int | None:
    """Return the even batch size next to the task's; None for loaders, which make their own."""
    try:
        task.arrays("train")
    except DataError:
        return None
    num_rows = len(next(task.batches("train"))[1])
    return num_rows + num_rows % 2


def num_training_rows(task: Task) -> int:
    """Return the number of training rows."""
    return sum(len(targets) for _, targets in task.batches("train"))
