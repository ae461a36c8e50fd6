"""Bounded buffers of a learner's handle: events on their way, and events without a label.

Both are bounded in events and in bytes, because events may be of any size. The caller excludes
other threads.
"""

from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from dynopt_ray.online import Event, LearnResult, stored_bytes

Learned = Future[LearnResult | None]
"""A future that is done when the event is on disk and learned.

Its result is None if the actor died after the event was on disk, but before it could reply (unless
results are kept, see `DurableLearner`), or if the event was skipped.
"""


@dataclass(frozen=True)
class PendingEvent:
    """An event that waits for its acknowledgement.

    Attributes:
        sequence: its sequence number.
        event: its x and y.
        num_bytes: its size in a journal.
        learned: the future of its result.
    """

    sequence: int
    event: Event
    num_bytes: int
    learned: Learned


class PendingEvents:
    """Events that wait for their acknowledgement, in order.

    Args:
        max_events: the largest number of events.
        max_bytes: the largest size of all events together. A single event may be larger.
    """

    def __init__(self, *, max_events: int, max_bytes: int) -> None:
        self._max_events, self._max_bytes = max_events, max_bytes
        self._events: deque[PendingEvent] = deque()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._events)

    def has_room(self, num_bytes: int) -> bool:
        """Whether an event of a size can be added now."""
        if not self._events:
            return True
        fits = self._num_bytes + num_bytes <= self._max_bytes
        return fits and len(self._events) < self._max_events

    def add(self, sequence: int, event: Event) -> Learned:
        """Append an event and return the future of its result."""
        learned: Learned = Future()
        # This prevents cancelling: the event may already be on its way to the actor.
        learned.set_running_or_notify_cancel()
        self._events.append(PendingEvent(sequence, event, stored_bytes(*event), learned))
        self._num_bytes += self._events[-1].num_bytes
        return learned

    def first(self, max_events: int, max_bytes: int) -> list[PendingEvent]:
        """Return the first events, as many as the bounds allow, but at least one if any waits."""
        batch: list[PendingEvent] = []
        size = 0
        for event in self._events:
            size += event.num_bytes
            if len(batch) == max_events or (batch and size > max_bytes):
                break
            batch.append(event)
        return batch

    def drop(self, num_events: int) -> list[PendingEvent]:
        """Remove the first events and return them."""
        dropped = [self._events.popleft() for _ in range(num_events)]
        self._num_bytes -= sum(event.num_bytes for event in dropped)
        return dropped


class UnlabelledEvents:
    """The latest events that were predicted and wait for their labels.

    Args:
        max_events: the largest number of events.
        max_bytes: the largest size of all events together. The latest event is kept even if it
            alone is larger.
    """

    def __init__(self, *, max_events: int, max_bytes: int) -> None:
        self._max_events, self._max_bytes = max_events, max_bytes
        self._events: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._num_bytes = 0

    def add(self, prediction_id: int, x: NDArray[Any]) -> None:
        """Keep an event, and forget the oldest ones if there are too many."""
        self._events[prediction_id] = x
        self._num_bytes += x.nbytes
        while len(self._events) > self._max_events or (
            len(self._events) > 1 and self._num_bytes > self._max_bytes
        ):
            _, oldest = self._events.popitem(last=False)
            self._num_bytes -= oldest.nbytes

    def take(self, prediction_id: int) -> NDArray[Any] | None:
        """Remove an event and return it; None if it is not kept."""
        x = self._events.pop(prediction_id, None)
        if x is not None:
            self._num_bytes -= x.nbytes
        return x


def at_least(least: int, **values: int) -> None:
    """Raise a ValueError that names the first argument of `RemoteLearner` below `least`."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"RemoteLearner: {name} is {value}; it must be at least {least}")
