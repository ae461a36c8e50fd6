"""Tests a network on the events of a stream and finds those that it cannot learn from."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dynopt_ray.errors import DataError
from dynopt_ray.online.learner.events import (
    event_tensor,
    non_finite_problem,
    pair_batch,
)
from dynopt_ray.online.learner.targets import event_errors, fitted_targets
from dynopt_ray.online.learner.whole_numbers import WholeNumbers
from dynopt_ray.tasks import LossFunction, TargetKind

_OUTPUT = "the network's output"
# AcceleratorError exists since torch 2.8.
_OF_THE_MACHINE = (
    torch.OutOfMemoryError,
    getattr(torch, "AcceleratorError", torch.OutOfMemoryError),
    MemoryError,
    OSError,
)
_USUAL = (RuntimeError, ValueError, TypeError, IndexError)


@dataclass(frozen=True)
class TestedEvents:
    """Good events with the network's outputs and errors from before it learns from them.

    Attributes:
        x: inputs, (events, …).
        y: targets, (events, …), as `fitted_targets` returns them.
        output: the network's outputs in eval mode, (events, …).
        loss: mean loss of the events; NaN if there are none.
        errors: one error per event; see `event_errors`.
        targets: whether y are labels or numbers.
    """

    x: Tensor = field(default_factory=lambda: torch.empty(0))
    y: Tensor = field(default_factory=lambda: torch.empty(0))
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    loss: float = math.nan
    errors: tuple[float, ...] = ()
    targets: TargetKind = "labels"


@dataclass(frozen=True)
class Admitted:
    """The events of one call: test results of the good ones and reasons for the bad ones.

    Attributes:
        num_events: the number of events in the call.
        tested: the good events.
        reasons: row of a bad event -> why the network cannot learn from it.
        overflowed: whether the network's output was not finite although the events were.
    """

    num_events: int
    tested: TestedEvents
    reasons: dict[int, str]
    overflowed: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows of the good events, ascending."""
        return tuple(row for row in range(self.num_events) if row not in self.reasons)

    def refused(self, reason: str) -> "Admitted":
        """Return the same events, all of them bad; `reason` applies to those that were good."""
        reasons = dict.fromkeys(range(self.num_events), reason) | self.reasons
        return Admitted(self.num_events, TestedEvents(), reasons, self.overflowed)


@dataclass(frozen=True)
class Admission:
    """Separates good events from bad ones by testing the network on them; changes nothing.

    An event is bad if it is not numeric, not finite or of the wrong shape, if its target does not
    fit the output, if the network or the loss raises an error, or if the output or the loss is not
    finite.

    Attributes:
        forward: mini-batch -> outputs, in eval mode.
        loss: (output, target) -> mean loss.
        dtype: the floating type of the network.
        device: the device of the network.
        targets: the kind of targets that the loss needs; None if it is the user's own.
        whole_numbers: converts events of whole numbers to floats if the network needs floats.
    """

    forward: Callable[[Tensor], Tensor]
    loss: LossFunction
    dtype: torch.dtype
    device: torch.device
    targets: TargetKind | None
    whole_numbers: WholeNumbers

    def admit(self, x: Any, y: Any, event_shape: torch.Size | None) -> Admitted:
        """Test one event or mini-batch.

        Args:
            x: one event, or a mini-batch whose first dimension counts the events.
            y: the target of the event, or one target per event.
            event_shape: the shape of one event; None if the stream has had no good event yet.
        """
        try:
            batch_x, batch_y = pair_batch(self._tensor(x), self._tensor(y), event_shape)
        except DataError as error:
            return Admitted(1, TestedEvents(), {0: str(error)})
        if not len(batch_x):
            return Admitted(0, TestedEvents(), {})
        if not batch_x.numel():
            # Rows without numbers take no memory, so there may be more of them than can be tested.
            reason = f"x has shape {tuple(batch_x.shape)}, so its events hold no numbers"
            return Admitted(1, TestedEvents(), {0: reason})
        batch_x = self.whole_numbers(batch_x)
        tested = self._test(batch_x, batch_y)
        if isinstance(tested, TestedEvents):
            return Admitted(len(batch_x), tested, {})
        overflowed = tested.startswith(_OUTPUT)
        # One bad row must not exclude the others, so test each row alone.
        alone = [self._test(batch_x[r : r + 1], batch_y[r : r + 1]) for r in range(len(batch_x))]
        reasons = {row: result for row, result in enumerate(alone) if isinstance(result, str)}
        good = [row for row in range(len(batch_x)) if row not in reasons]
        tested = self._test(batch_x[good], batch_y[good]) if good else tested
        if isinstance(tested, str):
            # Each row alone is good, but the network refuses them together.
            return Admitted(len(batch_x), TestedEvents(), {}, overflowed).refused(tested)
        return Admitted(len(batch_x), tested, reasons, overflowed)

    def _tensor(self, value: Any) -> Tensor:
        return event_tensor(value, dtype=self.dtype, device=self.device)

    def _test(self, x: Tensor, y: Tensor) -> TestedEvents | str:
        """Return the test results of a mini-batch, or what is wrong with it."""
        problem = non_finite_problem("x", x) or non_finite_problem("y", y)
        if problem:
            return problem
        refused = f"an event of shape {tuple(x.shape[1:])}"
        try:
            with refusals(f"the network refuses {refused}"):
                output = self.forward(x)
            if problem := non_finite_problem(_OUTPUT, output):
                return problem
            with refusals(f"the loss refuses {refused}"):
                return self._judged(x, y, output)
        except DataError as error:
            return str(error)

    def _judged(self, x: Tensor, y: Tensor, output: Tensor) -> TestedEvents | str:
        y, kind = fitted_targets(y, output, self.targets)
        loss = float(self.loss(output, y))
        if not math.isfinite(loss):
            return f"the loss of the event is {loss}"
        errors = event_errors(self.loss, output, y, kind)
        return TestedEvents(x, y, output, loss, tuple(errors), kind)


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Convert an error that a network or a loss raises on unsuitable events into a `DataError`.

    Args:
        what: the beginning of the error message.
    """
    try:
        yield
    except DataError:
        raise  # it says itself what is wrong
    except _OF_THE_MACHINE:
        # The machine failed, not the events. A replay may find enough memory and succeed.
        raise
    except Exception as error:
        # A network or loss of the user's own may raise anything. Nothing has been changed by it,
        # and a replay meets the same error.
        kind = "" if isinstance(error, _USUAL) else f"{type(error).__name__}: "
        raise DataError(f"{what}: {kind}{error!s:.500}") from error
