"""Tasks: model factory, data splits, loss and metric.

Example:
    >>> from dynopt_ray.tasks import load_task
    >>> task = load_task("digits-mlp", {"hidden": [64, 32]})
    >>> task.splits, task.num_classes
    (('train', 'validation', 'test'), 10)
"""

from dynopt_ray.tasks.batches import Batch, Inputs, batch_indices, call_model
from dynopt_ray.tasks.loading import load_task
from dynopt_ray.tasks.loop import TrainStats
from dynopt_ray.tasks.objectives import LOSSES, METRICS, LossFunction, MetricFunction, Metrics
from dynopt_ray.tasks.sources import Split
from dynopt_ray.tasks.task import Task

__all__ = [
    "LOSSES",
    "METRICS",
    "Batch",
    "Inputs",
    "LossFunction",
    "MetricFunction",
    "Metrics",
    "Split",
    "Task",
    "TrainStats",
    "batch_indices",
    "call_model",
    "load_task",
]
