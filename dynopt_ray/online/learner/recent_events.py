"""The latest events of a stream, kept in a fixed amount of memory."""

from typing import Any

import torch
from torch import Tensor

from dynopt_ray.errors import DataError


class EventBuffer:
    """The latest `capacity` events, in order of arrival.

    The buffers have room for twice the capacity, so the latest events are always one contiguous
    slice. A ring buffer of exactly the capacity would have to gather rows at every read, and the
    guard reads at every event.

    Args:
        capacity: the largest number of events kept; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        self._end = 0

    def __len__(self) -> int:
        return min(self._end, self.capacity)

    def check(self, x: Tensor, y: Tensor) -> None:
        """Check that a mini-batch can be added to the events that are already kept.

        Raises:
            DataError: its events or targets have another shape, or a type that cannot be
                converted without loss. Whole numbers are kept as floats if floats follow.
        """
        for name, new, kept in (("x", x, self._x), ("y", y, self._y)):
            if kept is None:
                continue
            what = {"x": "events", "y": "targets"}[name]
            if new.shape[1:] != kept.shape[1:]:
                raise DataError(
                    f"{name} has shape {tuple(new.shape[1:])}; the {what} of this stream have "
                    f"shape {tuple(kept.shape[1:])}"
                )
            if name == "x" and new.is_floating_point() and not kept.is_floating_point():
                self._x = kept.to(new.dtype)
            elif not torch.can_cast(new.dtype, kept.dtype):
                raise DataError(
                    f"{name} is {new.dtype}; the {what} of this stream are {kept.dtype}"
                )

    def add(self, x: Tensor, y: Tensor) -> None:
        """Append copies of a mini-batch and drop the oldest events if the capacity is exceeded."""
        if not self.capacity:
            return
        x, y = x[-self.capacity :], y[-self.capacity :]
        if self._x is None or self._y is None:
            self._x = x.new_empty((2 * self.capacity, *x.shape[1:]))
            self._y = y.new_empty((2 * self.capacity, *y.shape[1:]))
        if self._end + len(x) > 2 * self.capacity:
            kept_x, kept_y = self._x[: self._end], self._y[: self._end]
            kept = self.capacity - len(x)
            self._x[:kept] = kept_x[self._end - kept :].clone()
            self._y[:kept] = kept_y[self._end - kept :].clone()
            self._end = kept
        self._x[self._end : self._end + len(x)] = x
        self._y[self._end : self._end + len(x)] = y
        self._end += len(x)

    def latest(self, num_events: int) -> tuple[Tensor, Tensor]:
        """Return the latest `num_events` events, or all if fewer are kept; oldest first.

        Returns:
            Views of x and y. The next `add` may overwrite them, so use them at once.
        """
        if self._x is None or self._y is None:
            return torch.empty(0, device="cpu"), torch.empty(0, device="cpu")
        start = self._end - min(num_events, len(self))
        return self._x[start : self._end], self._y[start : self._end]

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the kept events."""
        if self._x is None:
            return {}
        x, y = self.latest(self.capacity)
        return {"x": x.clone(), "y": y.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the kept events."""
        self._x = self._y = None
        self._end = 0
        if state:
            self.add(state["x"], state["y"])
