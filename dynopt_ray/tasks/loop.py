"""The two loops of every task: training steps, and the evaluation of a whole split."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynopt_ray.criteria import Batch
from dynopt_ray.errors import DataError, DivergedError
from dynopt_ray.schedules import Schedule, to_torch
from dynopt_ray.structure import Inputs
from dynopt_ray.tasks.batches import (
    OutputKind,
    binary_logits,
    call_model,
    check_output,
    is_binary,
    is_classification,
)
from dynopt_ray.tasks.objectives import (
    LossFunction,
    MetricFunction,
    Metrics,
    TargetKind,
    check_scalar,
    confidence,
    default_metric,
    kind_of,
    measured,
    row_scores,
)
from dynopt_ray.tasks.sources import Source
from dynopt_ray.transfers import read_numbers

AddedLoss = Callable[[Inputs, Tensor], Tensor]
"""(inputs, output) -> scalar to add to a batch's loss, such as the distance from a teacher."""


@dataclass(frozen=True)
class TrainStats:
    """A summary of some training steps.

    Attributes:
        mean_loss: the mean of the batches' losses, each computed before its own step, without
            the added loss.
        last_loss: the loss of the last batch.
        num_steps: the number of optimizer steps taken.
        num_samples: the number of rows seen; repeated rows count each time.
    """

    mean_loss: float
    last_loss: float
    num_steps: int
    num_samples: int


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    *,
    num_steps: int,
    source: Source,
    loss: LossFunction,
    kind: TargetKind | None,
    schedule: Schedule | LRScheduler | None,
    added_loss: AddedLoss | None = None,
) -> TrainStats:
    """Take `num_steps` optimizer steps; see `Task.train_steps`."""
    losses, num_samples = [], 0
    scheduler = _scheduler(schedule, optimizer)
    with mode(model, training=True), torch.enable_grad():
        for step, (inputs, targets) in enumerate(islice(batches, num_steps), start=1):
            optimizer.zero_grad()
            output = checked_output(model, inputs, targets, source, kind)
            value = check_scalar(loss(output, targets))
            losses.append(value.item())
            if not math.isfinite(losses[-1]):
                raise DivergedError(
                    f"the loss is {losses[-1]} at step {step} of {num_steps}; this step was not "
                    "taken. Lower the learning rate, or go back to an earlier state"
                    f"{_float16_hint(model)}"
                )
            if added_loss is not None:
                value = value + check_scalar(added_loss(inputs, output))
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            num_samples += len(targets)
    return TrainStats(math.fsum(losses) / len(losses), losses[-1], len(losses), num_samples)


@dataclass(frozen=True, eq=False)
class UnreadMetrics:
    """`Metrics` before the host has read them from the device; see `read_metrics`.

    Attributes:
        losses: the mean loss of each batch.
        sizes: the number of rows of each batch.
        metric: the task's metric; a tensor unless the metric is the user's own.
        confidence: see `Metrics`.
    """

    losses: Sequence[Tensor]
    sizes: Sequence[int]
    metric: Tensor | float
    confidence: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """What has to be read."""
        figures = self.metric, self.confidence
        return [*self.losses, *(figure for figure in figures if isinstance(figure, Tensor))]

    def read(self, figures: Iterator[float]) -> Metrics:
        """Return the metrics, once the tensors have been read.

        Raises:
            DivergedError: the loss or the metric is NaN or infinite.
        """
        num_samples = sum(self.sizes)
        metrics = Metrics(
            loss=math.fsum(next(figures) * size for size in self.sizes) / num_samples,
            metric=next(figures) if isinstance(self.metric, Tensor) else self.metric,
            confidence=None if self.confidence is None else next(figures),
            num_samples=num_samples,
        )
        for name, figure in (("loss", metrics.loss), ("metric", metrics.metric)):
            if not math.isfinite(figure):
                if name == "metric" and not isinstance(self.metric, Tensor):
                    raise DivergedError(
                        f"the metric over {num_samples} rows is {figure}, although the loss is "
                        f"{metrics.loss:.3g}: the metric function itself cannot judge the model"
                    )
                raise DivergedError(
                    f"the {name} over {num_samples} rows is {figure}: the model's outputs are not "
                    f"finite or too large, so the model cannot be judged"
                )
        return metrics


def read_metrics(*unread: UnreadMetrics) -> list[Metrics]:
    """Return the metrics of several evaluations, after one wait of the host for the device.

    Raises:
        DivergedError: a loss or a metric is NaN or infinite.
    """
    figures = iter(read_numbers([tensor for one in unread for tensor in one.tensors]))
    return [one.read(figures) for one in unread]


def evaluate(
    model: nn.Module,
    source: Source,
    *,
    loss: LossFunction,
    metric: MetricFunction | None,
    kind: TargetKind | None,
) -> UnreadMetrics:
    """Compute loss, metric and confidence over all rows; see `Task.evaluate`."""
    outputs, targets, losses = [], [], []
    with mode(model, training=False), torch.no_grad():
        for inputs, batch_targets in source.batches(None, None):
            output = checked_output(model, inputs, batch_targets, source, kind)
            losses.append(check_scalar(loss(output, batch_targets)))
            outputs.append(output)
            targets.append(batch_targets)
        # On the whole split at once: a metric such as R² is not the mean of its batches' values.
        output, all_targets = torch.cat(outputs), torch.cat(targets)
        metric = metric or _default_metric(all_targets, kind)
        value = measured(metric, output, all_targets)
        # Only a metric of the user's own has been read already.
        if isinstance(value, float) and not math.isfinite(value) and bool(output.isfinite().all()):
            raise DivergedError(
                f"the metric over {len(all_targets)} rows is {value}, although the model's outputs "
                "are finite: the metric itself cannot judge them"
            )
        return UnreadMetrics(
            losses, [len(batch) for batch in targets], value, confidence(output, all_targets)
        )


def scores(
    model: nn.Module, batches: Iterator[Batch], *, source: Source, kind: TargetKind | None
) -> Tensor | None:
    """Return one score per row, or None if the targets are not classes; see `Task.row_scores`."""
    found: list[Tensor] = []
    with mode(model, training=False), torch.no_grad():
        for inputs, targets in batches:
            output = checked_output(model, inputs, targets, source, kind)
            some = row_scores(output, targets)
            if some is None:
                return None
            found.append(some)
    return torch.cat(found).cpu()


def checked_output(
    model: nn.Module, inputs: Inputs, targets: Tensor, source: Source, kind: TargetKind | None
) -> Tensor:
    """Return the model's output for a batch after checking that it fits the targets.

    If the loss is the user's own function (`kind` is None), that function decides which shapes
    are valid, and one logit per label is accepted.

    Raises:
        DataError: the output's shape does not fit the targets, or a label is not among the
            model's classes.
    """
    output = call_model(model, inputs)
    if kind is not None or not isinstance(output, Tensor):
        output = check_output(output, targets)
    if kind is None and binary_logits(output, targets) is not None:
        return output
    if is_classification(output, targets):
        source.check_labels(targets, output.shape[1])
    return output


def outputs_of(
    make_model: Callable[[], nn.Module], source: Source, kind: TargetKind | None
) -> tuple[OutputKind, int | None]:
    """The kind of a task's outputs, and the number of classes; see `Task.outputs`.

    Raises:
        DataError: the output does not fit the targets.
    """
    inputs, targets = source.head(2)
    if targets.is_floating_point():
        return "numbers", None
    model = make_model()
    with mode(model, training=False), torch.no_grad():
        output = checked_output(model, inputs, targets, source, kind)
    if kind is None and binary_logits(output, targets) is not None:
        return "logits", 2
    return "classes", int(check_output(output, targets).shape[1])


def _default_metric(targets: Tensor, kind: TargetKind | None) -> MetricFunction:
    """The metric for the targets if the user gives none.

    Raises:
        DataError: the loss is the user's own, and the targets look like labels but are floats.
    """
    if kind is None and targets.is_floating_point() and is_binary(targets):
        raise DataError(
            "all targets are 0 or 1, but they are floats and the loss is your own function, so "
            "the default metric would be R², which is for numbers. Make them whole numbers, so "
            "that it is accuracy, and use targets.float() in the loss; or give the task a metric"
        )
    return default_metric(kind_of(targets))


def _float16_hint(model: nn.Module) -> str:
    """Another possible cause of a loss that is not finite, if parameters are float16."""
    if all(parameter.dtype != torch.float16 for parameter in model.parameters()):
        return ""
    return (
        ". Some parameters are float16, in which small numbers such as Adam's eps become 0: train "
        "in bfloat16 or float32, or give Adam eps=1e-4"
    )


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set train or eval mode within a block; afterwards restore the mode of each module."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def _scheduler(schedule: Schedule | LRScheduler | None, optimizer: Optimizer) -> LRScheduler | None:
    if schedule is None:
        return None
    if not isinstance(schedule, LRScheduler):
        return to_torch(schedule, optimizer)
    if schedule.optimizer is not optimizer:
        raise ValueError("the schedule was made for another optimizer; make one for this optimizer")
    return schedule
