"""Losses and metrics by name, and the result of an evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, SupportsFloat, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dynopt_ray.criteria import separate_rows
from dynopt_ray.errors import DataError, UnknownNameError
from dynopt_ray.tasks.batches import binary_logits, is_binary, is_classification

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(output, targets) -> scalar tensor, the mean loss over the batch."""

MetricFunction = Callable[[Tensor, Tensor], float]
"""(output, targets) of a whole split -> a number; larger is better."""

TargetKind = Literal["labels", "numbers"]
"""Whether targets are classes 0, 1, … or real numbers."""

_Function = TypeVar("_Function", LossFunction, MetricFunction)


@dataclass(frozen=True)
class Metrics:
    """The results of a model on a whole split.

    Attributes:
        loss: the mean loss over all rows.
        metric: the task's metric; larger is better.
        confidence: the mean probability given to the right class, in [0, 1]; None if the
            targets are not classes.
        num_samples: the number of rows.
    """

    loss: float
    metric: float
    confidence: float | None
    num_samples: int

    @property
    def smooth(self) -> float:
        """The mean of metric and confidence, or the metric if there is no confidence.

        Accuracy changes in steps of one row. On small splits this hides the effect of an edit.
        """
        return self.metric if self.confidence is None else (self.metric + self.confidence) / 2


@dataclass(frozen=True)
class Objective(Generic[_Function]):
    """A loss or metric, and the kind of targets that it is for; None means any kind."""

    function: _Function
    targets: TargetKind | None


def accuracy(output: Tensor, targets: Tensor) -> float:
    """The fraction of targets whose class has the largest output, in [0, 1].

    If there is one logit per target, a logit above 0 means class 1 and any other class 0.

    Raises:
        DataError: there is one logit per target, but a target is neither 0 nor 1.
    """
    return _accuracy(output, targets).item()


def _accuracy(output: Tensor, targets: Tensor) -> Tensor:
    logits = binary_logits(output, targets)
    if logits is not None:
        if not is_binary(targets):
            raise DataError(
                f"accuracy: one output per row only tells the classes 0 and 1 apart, but there is "
                f"class {targets.max().item()}; give the task a metric, a function of (output, "
                f"targets)"
            )
        return ((logits > 0) == targets.bool()).double().mean()
    return (output.argmax(dim=1) == targets).double().mean()


def r2(output: Tensor, targets: Tensor) -> float:
    """The coefficient of determination, 1 − SS_residual / SS_total, at most 1.

    0 is as good as predicting the mean. Several columns are averaged with equal weights. A
    constant column counts 1 if it is predicted exactly and 0 otherwise, as in scikit-learn.
    """
    return _r2(output, targets).item()


def _r2(output: Tensor, targets: Tensor) -> Tensor:
    predicted = output.double().reshape(len(output), -1)
    true = targets.double().reshape(len(targets), -1)
    residual = ((true - predicted) ** 2).sum(0)
    total = ((true - true.mean(0)) ** 2).sum(0)
    scores = 1 - residual / total
    return scores.where(total > 0, (residual == 0).double()).mean()


def measured(metric: MetricFunction, output: Tensor, targets: Tensor) -> float | Tensor:
    """Return a metric; those of this file as a tensor on the output's device, not read yet."""
    if metric is accuracy:
        return _accuracy(output, targets)
    return _r2(output, targets) if metric is r2 else check_number(metric(output, targets))


def confidence(output: Tensor, targets: Tensor) -> Tensor | None:
    """The mean probability given to the right class, or None if the targets are not classes.

    The probability is the softmax of the outputs if there is one per class, and the sigmoid of
    the output if it is a single logit. The result is a float64 tensor of one number.
    """
    logits = binary_logits(output, targets)
    if logits is not None:
        if not is_binary(targets):
            return None
        return (logits * (2 * targets - 1)).double().sigmoid().mean()
    if not is_classification(output, targets):
        return None
    return output.double().softmax(dim=1).gather(1, targets.unsqueeze(1)).mean()


def row_scores(output: Tensor, targets: Tensor) -> Tensor | None:
    """One score per row, (rows,): the mean of right (1) or wrong (0) and of `confidence`.

    Their mean over all rows is `Metrics.smooth` of a task whose metric is the accuracy. None if the
    targets are not classes.
    """
    logits = binary_logits(output, targets)
    if logits is not None and is_binary(targets):
        right = (logits > 0) == targets.bool()
        probability = (logits * (2 * targets - 1)).double().sigmoid()
    elif logits is None and is_classification(output, targets):
        right = output.argmax(dim=1) == targets
        probability = output.double().softmax(dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)
    else:
        return None
    scores: Tensor = (right.double() + probability) / 2
    return scores.reshape(len(targets), -1).mean(dim=1)


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
"""Metrics by name; larger is better for all of them."""


def resolve_loss(loss: str | LossFunction) -> Objective[LossFunction]:
    """Return a loss by its name, or the user's own function.

    Raises:
        UnknownNameError: the loss is unknown.
        TypeError: `loss` is neither a name nor a function.
    """
    return _resolve("loss", loss, LOSSES)


def resolve_metric(
    metric: str | MetricFunction | None, targets: TargetKind | None
) -> MetricFunction | None:
    """Return a metric by its name, the user's own function, or the default for `targets`.

    The result is None if neither the metric nor the kind of targets is known.

    Raises:
        UnknownNameError: the metric is unknown.
        TypeError: `metric` is neither a name nor a function.
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
    """The kind of targets: labels if they are whole numbers, numbers if they are floats."""
    return "numbers" if targets.is_floating_point() else "labels"


def check_scalar(loss: Tensor) -> Tensor:
    """Return the loss after checking that it is one number.

    Raises:
        TypeError: the loss function did not return a scalar tensor.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
        raise TypeError(
            f"the loss function returns {got}; it must return one number, the mean over the "
            f"batch, as a tensor: use reduction='mean'"
        )
    return loss


def check_number(metric: object) -> float:
    """Return what a metric gave as a number.

    Raises:
        TypeError: it is none.
    """
    if isinstance(metric, torch.Tensor) and metric.numel() == 1:
        return float(metric)
    if isinstance(metric, SupportsFloat) and not isinstance(metric, torch.Tensor):
        return float(metric)
    raise TypeError(f"the metric function returns {metric!r}; it must return one number")


def _resolve(
    kind: str, value: str | _Function, known: Mapping[str, Objective[_Function]]
) -> Objective[_Function]:
    if isinstance(value, str):
        if value not in known:
            raise UnknownNameError(kind, value, known)
        return known[value]
    if isinstance(value, type):
        raise TypeError(f"{kind} is the class {value.__name__}; pass {value.__name__}()")
    if not callable(value):
        raise TypeError(
            f"{kind} must be a name ({', '.join(known)}) or a function of (output, targets), "
            f"not {value!r}"
        )
    if any(value is member.function for member in known.values() if member.targets == "labels"):
        return Objective(value, None)  # it looks labels up, so it cannot broadcast
    return Objective(separate_rows(value, kind), None)
