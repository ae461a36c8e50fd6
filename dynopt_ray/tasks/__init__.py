"""Tasks: model factory, data splits, loss and metric.

Example:
    >>> from dynopt_ray.tasks import load_task
    >>> task = load_task("digits-mlp", {"hidden": [64, 32]})
    >>> task.splits, task.num_classes
    (('train', 'validation', 'test'), 10)
"""

from dynopt_ray.criteria import Batch
from dynopt_ray.structure import Inputs
from dynopt_ray.tasks.batches import (
    OutputKind,
    batch_indices,
    binary_logits,
    call_model,
    check_output,
    epoch_order,
    is_binary,
    is_classification,
    predicted_classes,
    take_rows,
)
from dynopt_ray.tasks.distribution import STACKABLE_SIZE, TaskSpec, drawn_tasks
from dynopt_ray.tasks.loading import load_task
from dynopt_ray.tasks.loop import AddedLoss, TrainStats, UnreadMetrics, read_metrics
from dynopt_ray.tasks.objectives import (
    LOSSES,
    METRICS,
    LossFunction,
    MetricFunction,
    Metrics,
    TargetKind,
    check_scalar,
    resolve_loss,
)
from dynopt_ray.tasks.seeding import seeded_torch
from dynopt_ray.tasks.sources import Split
from dynopt_ray.tasks.task import Task

__all__ = [
    "LOSSES",
    "METRICS",
    "STACKABLE_SIZE",
    "AddedLoss",
    "Batch",
    "Inputs",
    "LossFunction",
    "MetricFunction",
    "Metrics",
    "OutputKind",
    "Split",
    "TargetKind",
    "Task",
    "TaskSpec",
    "TrainStats",
    "UnreadMetrics",
    "batch_indices",
    "binary_logits",
    "call_model",
    "check_output",
    "check_scalar",
    "drawn_tasks",
    "epoch_order",
    "is_binary",
    "is_classification",
    "load_task",
    "predicted_classes",
    "read_metrics",
    "resolve_loss",
    "seeded_torch",
    "take_rows",
]
