"""Events: what a stream may bring, and the quarantine for what cannot be learned from."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynopt_ray.errors import DataError


@dataclass(frozen=True)
class Rejected:
    """One event that was not learned from.

    Attributes:
        event: its number in the stream, from 1.
        reason: what is wrong with it, with the value and its place.
    """

    event: int
    reason: str


class Quarantine:
    """How many events were refused, and why the last ones were.

    Args:
        keep: how many reasons are kept.
    """

    def __init__(self, keep: int = 20) -> None:
        self.total = 0
        self.latest: deque[Rejected] = deque(maxlen=keep)

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Count events and keep their reasons."""
        self.total += len(rejected)
        self.latest.extend(rejected)

    def state_dict(self) -> dict[str, Any]:
        """The count and the reasons, as JSON-able data."""
        return {"total": self.total, "latest": [[r.event, r.reason] for r in self.latest]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the count and the reasons."""
        self.total = state["total"]
        self.latest.clear()
        self.latest.extend(Rejected(event, reason) for event, reason in state["latest"])


def event_tensor(value: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number, list, array or tensor as a tensor; floats take `dtype`, whole numbers keep theirs.

    Raises:
        DataError: it is not numeric, or its rows differ in length.
    """
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
            value = torch.as_tensor(array.astype(array.dtype.newbyteorder("="), copy=False))
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{type(value).__name__} is not numeric data: {error}") from None
    tensor: Tensor = value.detach()
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)


def as_batch(x: Tensor, event_shape: torch.Size | None) -> tuple[Tensor, bool]:
    """`x` as a mini-batch, and whether it was a single event.

    Before the first event has shown its shape, one dimension means one event.

    Raises:
        DataError: neither an event of `event_shape` nor a mini-batch of such events.
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
            f"{tuple(event_shape)}, a mini-batch (events, {', '.join(map(str, event_shape))})"
        )
    return (x[None] if single else x), single


def pair_batch(x: Tensor, y: Tensor, event_shape: torch.Size | None) -> tuple[Tensor, Tensor]:
    """`x` and `y` as a mini-batch of equal length.

    Raises:
        DataError: they do not belong together, or x does not have the stream's shape.
    """
    if event_shape is None:
        single = y.ndim == 0 or x.ndim == 0 or len(x) != len(y)
        x = x[None] if single else x
    else:
        x, single = as_batch(x, event_shape)
    y = y[None] if single else y
    if y.ndim == 0 or len(x) != len(y):
        found = len(y) if y.ndim else "one"
        raise DataError(f"x holds {len(x)} events but y {found} label(s); give one per event")
    return x, y


def non_finite_problem(name: str, batch: Tensor) -> str | None:
    """Where a mini-batch first holds NaN or infinity, as a reason; None where all is finite."""
    # A finite sum is one cheap operation and proves it; only an overflow needs a closer look.
    if not batch.is_floating_point() or math.isfinite(batch.sum()):
        return None
    finite = torch.isfinite(batch)
    if bool(finite.all()):
        return None
    place = (~finite).nonzero()[0].tolist()
    where = f"[{', '.join(map(str, place[1:]))}]" if place[1:] else ""
    return f"{name}{where} is {float(batch[tuple(place)])}"


def label_problem(labels: Tensor, outputs: Tensor) -> str | None:
    """Why labels cannot belong to outputs of class scores; None where they can.

    Args:
        labels: (events, …).
        outputs: the network's scores, (events, classes, …).
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
