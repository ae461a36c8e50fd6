"""The two loops of every task: some training steps, and an evaluation of a whole split."""

import math
from collections.abc import Callable, Iterator
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
    is_binary,
    kind_of,
)
from dynopt_ray.tasks.sources import Source

AddedLoss = Callable[[Inputs, Tensor], Tensor]
"""(inputs, output) -> what is added to a batch's loss, such as the distance from a teacher."""


@dataclass(frozen=True)
class TrainStats:
    """What some training steps did.

    Attributes:
        mean_loss: the mean of the batches' losses, each before its own step, without what a
            caller adds.
        last_loss: the last of them.
        num_steps: optimizer steps taken.
        num_samples: rows seen, with repetition.
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


def evaluate(
    model: nn.Module,
    batches: Iterator[Batch],
    *,
    source: Source,
    loss: LossFunction,
    metric: MetricFunction | None,
    kind: TargetKind | None,
) -> Metrics:
    """Loss, metric and confidence over all batches; see `Task.evaluate`."""
    outputs, targets, losses = [], [], []
    with mode(model, training=False), torch.no_grad():
        for inputs, batch_targets in batches:
            output = checked_output(model, inputs, batch_targets, source, kind)
            value = check_scalar(loss(output, batch_targets)).item()
            losses.append(value * len(batch_targets))
            outputs.append(output)
            targets.append(batch_targets)
        # A metric such as R² is no mean of its batches' values, hence the whole split at once.
        output, all_targets = torch.cat(outputs), torch.cat(targets)
        metric = metric or _default_metric(all_targets, kind)
        metrics = Metrics(
            loss=math.fsum(losses) / len(all_targets),
            metric=float(metric(output, all_targets)),
            confidence=confidence(output, all_targets),
            num_samples=len(all_targets),
        )
    for name, figure in (("loss", metrics.loss), ("metric", metrics.metric)):
        if not math.isfinite(figure):
            raise DivergedError(
                f"the {name} over {metrics.num_samples} rows is {figure}: the model's outputs are "
                f"not finite or too large, so it cannot be judged"
            )
    return metrics


def checked_output(
    model: nn.Module, inputs: Inputs, targets: Tensor, source: Source, kind: TargetKind | None
) -> Tensor:
    """The model's output for a batch that it fits.

    Where the user brought the loss function (`kind` is None) the shapes are up to it, and one
    logit per label is fine.

    Raises:
        DataError: the output's shape does not fit the targets, or there are more classes.
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
    """What a task's models give, and how many classes that tells apart; see `Task.outputs`.

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
    """What the targets are judged by, where the caller says nothing.

    Raises:
        DataError: a loss of one's own and targets that look like labels, but are floats.
    """
    if kind is None and targets.is_floating_point() and is_binary(targets):
        raise DataError(
            "the targets are floats, 0 or 1, and the loss is your own: R² would judge them as "
            "numbers. Make them whole numbers, to be judged by accuracy, and use targets.float() "
            "in the loss; or give the task a metric"
        )
    return default_metric(kind_of(targets))


def _float16_hint(model: nn.Module) -> str:
    """What else may be wrong in float16."""
    if all(parameter.dtype != torch.float16 for parameter in model.parameters()):
        return ""
    return (
        ". Some parameters are float16, in which small numbers are 0, such as Adam's eps: train "
        "in bfloat16 or float32, or give Adam eps=1e-4"
    )


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode for a while; afterwards each module is in the mode it was in."""
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
        raise ValueError("the schedule was made for another optimizer; make one for this one")
    return schedule
