"""Conversion and checks of events, and the quarantine for unusable ones."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynopt_ray.errors import DataError
from dynopt_ray.transfers import to_device


@dataclass(frozen=True)
class Rejected:
    """One event that the learner did not learn from.

    Attributes:
        event: number of the event in the stream, from 1.
        reason: what is wrong with the event, with the value and its place.
    """

    event: int
    reason: str


class Quarantine:
    """The number of events that were refused, and the latest reasons.

    Args:
        keep: the number of reasons to keep.
    """

    def __init__(self, keep: int = 20) -> None:
        self.total = 0
        self.latest: deque[Rejected] = deque(maxlen=keep)

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Count events and keep their reasons."""
        self.total += len(rejected)
        self.latest.extend(rejected)

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the reasons as JSON-able data."""
        return {"total": self.total, "latest": [[r.event, r.reason] for r in self.latest]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the count and the reasons."""
        self.total = state["total"]
        self.latest.clear()
        self.latest.extend(Rejected(event, reason) for event, reason in state["latest"])


def event_tensor(value: Any, *, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Return a number, list, array or tensor as a tensor.

    Floats are converted to `dtype`; whole numbers and booleans keep their type.

    Args:
        value: the event, or a mini-batch of events.
        dtype: the floating type.
        device: where the tensor is wanted. None leaves tensors where they are, and everything else
            on the CPU.

    Raises:
        DataError: the value is not numeric, or its rows differ in length.
    """
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
            value = torch.as_tensor(
                array.astype(array.dtype.newbyteorder("="), copy=False), device="cpu"
            )
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{type(value).__name__} is not numeric data: {error}") from None
    tensor: Tensor = value.detach()
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor if device is None else to_device(tensor, device)


def as_batch(x: Tensor, event_shape: torch.Size | None) -> tuple[Tensor, bool]:
    """Return `x` as a mini-batch, and whether `x` is a single event.

    If `event_shape` is None, because there has been no good event yet, an `x` with at most one
    dimension is a single event.

    Raises:
        DataError: `x` is neither an event of shape `event_shape` nor a mini-batch of such events.
    """
    if event_shape is None:
        single = x.ndim <= 1
    elif x.shape == event_shape:
        single = True
    elif x.ndim and x.shape[1:] == event_shape:
        single = False
    else:
        raise DataError(
            f"x has shape {tuple(x.shape)}; an event of this stream has shape "
            f"{tuple(event_shape)}, and a mini-batch has shape "
            f"(events, {', '.join(map(str, event_shape))})"
        )
    return (x[None] if single else x), single


def pair_batch(x: Tensor, y: Tensor, event_shape: torch.Size | None) -> tuple[Tensor, Tensor]:
    """Return `x` and `y` as a mini-batch, with one target per event.

    Raises:
        DataError: the numbers of events and targets differ, or `x` does not have the shape of the
            stream's events.
    """
    if event_shape is None:
        single = y.ndim == 0 or x.ndim == 0 or len(x) != len(y)
        x = x[None] if single else x
    else:
        x, single = as_batch(x, event_shape)
    y = y[None] if single else y
    if y.ndim == 0 or len(x) != len(y):
        found = len(y) if y.ndim else "one"
        raise DataError(
            f"x holds {len(x)} events but y holds {found} label(s); give one label per event"
        )
    return x, y


def non_finite_problem(name: str, batch: Tensor) -> str | None:
    """Return where a mini-batch first holds NaN or infinity, or None if all of it is finite."""
    # A finite sum proves that all values are finite, and it is one cheap operation. Any other sum
    # needs a closer look, because the sum of finite values may overflow.
    if not batch.is_floating_point() or math.isfinite(batch.sum()):
        return None
    finite = torch.isfinite(batch)
    if bool(finite.all()):
        return None
    place = (~finite).nonzero()[0].tolist()
    where = f"[{', '.join(map(str, place[1:]))}]" if place[1:] else ""
    return f"{name}{where} is {float(batch[tuple(place)])}"


def label_problem(labels: Tensor, outputs: Tensor) -> str | None:
    """Return why labels do not fit the class scores of a network, or None if they do.

    Args:
        labels: (events, …).
        outputs: the scores, (events, classes, …).
    """
    num_classes = outputs.shape[1] if outputs.ndim > 1 else 0
    wanted = outputs.shape[:1] + outputs.shape[2:]
    if labels.shape != wanted:
        return f"y has shape {tuple(labels.shape[1:])}; the network needs {tuple(wanted[1:])}"
    if labels.is_floating_point() or labels.is_complex():
        return f"y is {labels.dtype}; classes are whole numbers, 0 to {num_classes - 1}"
    low, high = (int(extreme) for extreme in labels.long().aminmax())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        return f"y is {wrong}; the network knows classes 0 to {num_classes - 1}"
    return None
