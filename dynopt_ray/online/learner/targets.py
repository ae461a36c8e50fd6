"""The targets of events, in the shape and type that the network's outputs and the loss need."""

from typing import Any

import torch
from torch import Tensor

from dynopt_ray.criteria import without_ones
from dynopt_ray.errors import DataError
from dynopt_ray.online.learner.events import label_problem
from dynopt_ray.tasks import (
    LossFunction,
    TargetKind,
    binary_logits,
    is_binary,
    is_classification,
    predicted_classes,
)


def fitted_targets(
    targets: Tensor, output: Tensor, kind: TargetKind | None
) -> tuple[Tensor, TargetKind]:
    """Return targets that fit the outputs, and whether they are labels or numbers.

    Labels become int64. Numbers become floats of the outputs' shape: dimensions of size 1 may
    differ, but nothing is broadcast. A loss of the user's own (`kind` is None) means what it means
    in a `Task`: whole numbers are labels if there is one score per class, or one logit for the
    classes 0 and 1; everything else is left to the loss.

    Args:
        targets: (events, …), on the CPU: their values are looked at.
        output: (events, …), the network's outputs, on any device: only their form matters.
        kind: the kind of targets that the loss needs; None if the loss is the user's own.

    Raises:
        DataError: the targets do not fit the outputs.
    """
    if kind == "numbers":
        return _numbers(targets, output), "numbers"
    if kind is None and binary_logits(output, targets) is not None and not targets.is_complex():
        if not is_binary(targets):
            raise DataError(
                f"y is {_first_other(targets)}; one output per label only tells the classes 0 and "
                "1 apart. If y is a quantity, make it a float"
            )
        return targets.long(), "labels"
    if kind == "labels" or is_classification(output, targets):
        if problem := label_problem(targets, output):
            raise DataError(problem)
        return targets.long(), "labels"
    return targets, "numbers"


def event_errors(loss: LossFunction, output: Tensor, targets: Tensor, kind: TargetKind) -> Tensor:
    """Return one error per event: the fraction of wrong classes, or the loss of numbers.

    The host does not read them, so it does not wait for a GPU.

    Args:
        loss: the loss function of the stream.
        output: (events, …), the network's outputs before it learns from the events.
        targets: (events, …), from `fitted_targets`, on the device of the outputs.
        kind: what the targets are.

    Returns:
        float64 (events,), >= 0 for the usual losses; larger = worse.
    """
    predicted = predicted_classes(output, targets) if kind == "labels" else None
    if predicted is not None:
        if predicted.ndim == targets.ndim == 1:  # one label per event
            return (predicted != targets).double()
        wrong = predicted.reshape(len(targets), -1) != targets.reshape(len(targets), -1)
        return wrong.double().mean(dim=1)
    with torch.no_grad():
        return torch.stack(
            [
                one_number(loss(output[row : row + 1], targets[row : row + 1])).double().reshape(())
                for row in range(len(targets))
            ]
        )


def one_number(loss: Any) -> Tensor:
    """Return what a loss function returns as a tensor of one number, not read yet.

    Raises:
        RuntimeError, TypeError, ValueError: it is not one real number.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return loss.detach()
    return torch.tensor(
        float(loss), dtype=torch.float64, device="cpu"
    )  # raises, unless it is a plain number


def _numbers(targets: Tensor, output: Tensor) -> Tensor:
    if targets.is_complex():
        raise DataError(f"y is {targets.dtype}; the loss needs real numbers")
    if without_ones(targets.shape) != without_ones(output.shape):
        raise DataError(
            f"y has shape {tuple(targets.shape[1:])}; the network's output has shape "
            f"{tuple(output.shape[1:])}"
        )
    return targets.to(output.dtype).reshape(output.shape)


def _first_other(targets: Tensor) -> int:
    """Return the first label that is neither 0 nor 1."""
    flat = targets.long().flatten()
    return int(flat[(flat != 0) & (flat != 1)][0])
