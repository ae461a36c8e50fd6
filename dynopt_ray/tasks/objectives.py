"""Losses and metrics by name, and what an evaluation returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dynopt_ray.errors import DataError, UnknownNameError
from dynopt_ray.tasks.batches import binary_logits, is_classification

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(output, targets) -> scalar tensor, the mean over the batch."""

MetricFunction = Callable[[Tensor, Tensor], float]
"""(output, targets), each of a whole split -> a figure; larger is better."""

TargetKind = Literal["labels", "numbers"]
"""Whether targets are classes 0, 1, … or real numbers."""

_Function = TypeVar("_Function", LossFunction, MetricFunction)


@dataclass(frozen=True)
class Metrics:
    """How well a model does on a whole split.

    Attributes:
        loss: the mean loss over all rows.
        metric: the task's metric; larger is better.
        confidence: the mean probability given to the right class, in [0, 1]; None where
            targets are not classes.
        num_samples: the rows this was measured on.
    """

    loss: float
    metric: float
    confidence: float | None
    num_samples: int

    @property
    def smooth(self) -> float:
        """The mean of metric and confidence, or the metric where there is no confidence.

        Accuracy moves in steps of one row; on small splits that hides what one edit does.
        """
        return self.metric if self.confidence is None else (self.metric + self.confidence) / 2


@dataclass(frozen=True)
class Objective(Generic[_Function]):
    """A loss or metric and the kind of targets it is for; None is any kind."""

    function: _Function
    targets: TargetKind | None


def accuracy(output: Tensor, targets: Tensor) -> float:
    """The share of targets whose class has the largest output: in [0, 1].

    Of one logit per target, class 1 is found where it is above 0.

    Raises:
        DataError: one logit, and classes beside 0 and 1.
    """
    logits = binary_logits(output, targets)
    if logits is not None:
        if not is_binary(targets):
            raise DataError(
                f"accuracy: one output per row tells the classes 0 and 1 apart, but there is class "
                f"{targets.max().item()}; give the task a metric, a function of (output, targets)"
            )
        return ((logits > 0) == targets.bool()).double().mean().item()
    return (output.argmax(dim=1) == targets).double().mean().item()


def r2(output: Tensor, targets: Tensor) -> float:
    """Coefficient of determination, 1 − SS_residual / SS_total, at most 1.

    0 is as good as predicting the mean. Several columns are averaged with equal weights; one
    that is constant counts 1 if met exactly and 0 otherwise, as in scikit-learn.
    """
    predicted = output.double().reshape(len(output), -1)
    true = targets.double().reshape(len(targets), -1)
    residual = ((true - predicted) ** 2).sum(0)
    total = ((true - true.mean(0)) ** 2).sum(0)
    scores = 1 - residual / total
    return scores.where(total > 0, (residual == 0).double()).mean().item()


def confidence(output: Tensor, targets: Tensor) -> float | None:
    """Mean probability of the right class, or None where targets are no classes.

    It is the softmax of an output per class, and the sigmoid of one logit.
    """
    logits = binary_logits(output, targets)
    if logits is not None:
        if not is_binary(targets):
            return None
        return (logits * (2 * targets - 1)).double().sigmoid().mean().item()
    if not is_classification(output, targets):
        return None
    return output.double().softmax(dim=1).gather(1, targets.unsqueeze(1)).mean().item()


def is_binary(targets: Tensor) -> bool:
    """Whether all are 0 or 1."""
    return bool(((targets == 0) | (targets == 1)).all())


LOSSES: dict[str, Objective[LossFunction]] = {
    "cross_entropy": Objective(F.cross_entropy, "labels"),
    "mse": Objective(F.mse_loss, "numbers"),
    "l1": Objective(F.l1_loss, "numbers"),
    "huber": Objective(F.huber_loss, "numbers"),
}
"""Losses by name."""

METRICS: dict[str, Objective[MetricFunction]] = {
    "accuracy": Objective(accuracy, "labels"),
    "r2": Objective(r2, "numbers"),
}
"""Metrics by name; larger is better in all of them."""


def resolve_loss(loss: str | LossFunction) -> Objective[LossFunction]:
    """A loss by name, or a user's own function.

    Raises:
        UnknownNameError: no loss of this name.
        TypeError: neither a name nor a function.
    """
    return _resolve("loss", loss, LOSSES)


def resolve_metric(
    metric: str | MetricFunction | None, targets: TargetKind | None
) -> MetricFunction | None:
    """A metric by name or a user's own; None is the default for the kind of targets.

    Raises:
        UnknownNameError: no metric of this name.
        TypeError: neither a name nor a function.
        ValueError: the metric is for the other kind of targets.
    """
    if metric is None:
        return default_metric(targets) if targets else None
    objective = _resolve("metric", metric, METRICS)
    if targets and objective.targets and objective.targets != targets:
        raise ValueError(
            f"metric {metric!r} is for {objective.targets}, but the targets are {targets}; "
            f"use {', '.join(name for name, m in METRICS.items() if m.targets == targets)} or a "
            f"function of (output, targets)"
        )
    return objective.function


def default_metric(targets: TargetKind) -> MetricFunction:
    """Accuracy for labels, R² for numbers."""
    return accuracy if targets == "labels" else r2


def kind_of(targets: Tensor) -> TargetKind:
    """Labels are whole numbers, numbers are floats."""
    return "numbers" if targets.is_floating_point() else "labels"


def check_scalar(loss: Tensor) -> Tensor:
    """The loss, once it is known to be one number.

    Raises:
        TypeError: a loss function that does not return a scalar tensor.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
        raise TypeError(
            f"the loss function returns {got}; it must return one number, the mean over the "
            f"batch, as a tensor: use reduction='mean'"
        )
    return loss


def _resolve(
    kind: str, value: str | _Function, known: Mapping[str, Objective[_Function]]
) -> Objective[_Function]:
    if isinstance(value, str):
        if value not in known:
            raise UnknownNameError(kind, value, known)
        return known[value]
    if not callable(value):
        raise TypeError(
            f"{kind} must be a name ({', '.join(known)}) or a function of (output, targets), "
            f"not {value!r}"
        )
    return Objective(value, None)
