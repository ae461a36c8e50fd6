"""Tests a network on the events of a stream and finds those that it cannot learn from."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.errors import DataError
from dynopt_ray.online.learner.events import (
    event_tensor,
    non_finite_problem,
    pair_batch,
)
from dynopt_ray.online.learner.targets import event_errors, fitted_targets, one_number
from dynopt_ray.online.learner.whole_numbers import WholeNumbers
from dynopt_ray.tasks import LossFunction, TargetKind
from dynopt_ray.transfers import read_together, to_device

_CPU = torch.device("cpu")
_OUTPUT = "the network's output"
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

    x: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    y: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    output: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
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
            # Checked where they come from: events of the host before they are moved to a GPU.
            x = event_tensor(x, dtype=self.dtype)
            y = event_tensor(y, dtype=self.dtype, device=_CPU)
            batch_x, batch_y = pair_batch(x, y, event_shape)
        except DataError as error:
            return Admitted(1, TestedEvents(), {0: str(error)})
        if not len(batch_x):
            return Admitted(0, TestedEvents(), {})
        if not batch_x.numel():
            # Rows without numbers take no memory, so there may be more of them than can be tested.
            reason = f"x has shape {tuple(batch_x.shape)}, so its events hold no numbers"
            return Admitted(1, TestedEvents(), {0: reason})
        batch_x = self.whole_numbers(batch_x)
        reasons = _not_finite(batch_x, batch_y)
        good = [row for row in range(len(batch_x)) if row not in reasons]
        if not good:
            return Admitted(len(batch_x), TestedEvents(), reasons)
        if reasons:
            batch_x, batch_y = batch_x[good], batch_y[good]
        admitted = self._separated(batch_x, batch_y)
        found = {good[row]: reason for row, reason in admitted.reasons.items()}
        return replace(
            admitted,
            num_events=len(good) + len(reasons),
            reasons=dict(sorted({**reasons, **found}.items())),
        )

    def _separated(self, x: Tensor, y: Tensor) -> Admitted:
        """Separate rows of finite values.

        A clean mini-batch needs one forward pass, and one with wrong labels a second one, of the
        rows that remain. Any other refusal may come from each of the rows, so halves are tested
        until the rows at fault are found: one such row costs about four passes of all rows.
        """
        unfit: dict[int, str] = {}
        tested = self._test(x, y, unfit)
        good = [row for row in range(len(x)) if row not in unfit]
        if unfit and good:
            tested = self._test(x[good], y[good])
        if isinstance(tested, TestedEvents) or not good:
            return Admitted(len(x), _events(tested), unfit)
        overflowed = tested.startswith(_OUTPUT)

        def problem(rows: range) -> str | None:
            places = good[rows.start : rows.stop]
            found = self._test(x[places], y[places])
            return found if isinstance(found, str) else None

        refused = {good[row]: why for row, why in _faults(len(good), problem, tested).items()}
        kept = [row for row in good if row not in refused]
        if kept:
            tested = self._test(x[kept], y[kept])
            if isinstance(tested, str):
                # Each row alone is good, but the network refuses them together.
                refused |= dict.fromkeys(kept, tested)
        return Admitted(len(x), _events(tested), unfit | refused, overflowed)

    def _test(
        self, x: Tensor, y: Tensor, unfit: dict[int, str] | None = None
    ) -> TestedEvents | str:
        """Return the test results of a mini-batch, or what is wrong with it.

        If `unfit` is given and targets do not fit the output, it gets the rows at fault.
        """
        refused = f"an event of shape {tuple(x.shape[1:])}"
        try:
            with refusals(f"the network refuses {refused}"):
                x = to_device(x, self.device)
                output = self.forward(x)
            try:
                with refusals(f"the loss refuses {refused}"):
                    return self._judged(x, y, output)
            except DataError:
                if problem := non_finite_problem(_OUTPUT, output):
                    return problem
                if unfit is not None:
                    unfit.update(self._unfit(y, output))
                raise
        except DataError as error:
            return str(error)

    def _unfit(self, y: Tensor, output: Tensor) -> dict[int, str]:
        """Return the rows whose targets do not fit their outputs, with reasons."""

        def problem(rows: range) -> str | None:
            try:
                part = slice(rows.start, rows.stop)
                fitted_targets(y[part], output[part], self.targets)
            except DataError as error:
                return str(error)
            return None

        return _faults(len(y), problem)

    def _judged(self, x: Tensor, y: Tensor, output: Tensor) -> TestedEvents | str:
        """Return the test results of outputs that may not be finite, or what is wrong with them."""
        y, kind = fitted_targets(y, output, self.targets)
        y = to_device(y, output.device)
        loss = one_number(self.loss(output, y))
        errors = event_errors(self.loss, output, y, kind)
        # All figures are read at once: each read makes the host wait for a GPU. A finite sum proves
        # that all outputs are finite.
        total, loss, errors = read_together([output.sum(), loss, errors])
        is_sure = output.is_floating_point() and math.isfinite(total)
        if not is_sure and (problem := non_finite_problem(_OUTPUT, output)):
            return problem
        figure = float(loss)
        if not math.isfinite(figure):
            return f"the loss of the event is {figure}"
        return TestedEvents(x, y, output, figure, tuple(errors.tolist()), kind)


def _events(tested: TestedEvents | str) -> TestedEvents:
    return TestedEvents() if isinstance(tested, str) else tested


def _not_finite(x: Tensor, y: Tensor) -> dict[int, str]:
    """Return the rows with NaN or infinity in their inputs or targets, with the place of it."""

    def problem(rows: range) -> str | None:
        part = slice(rows.start, rows.stop)
        return non_finite_problem("x", x[part]) or non_finite_problem("y", y[part])

    return _faults(len(x), problem)


def _faults(
    num_rows: int, problem: Callable[[range], str | None], known: str | None = None
) -> dict[int, str]:
    """Return the rows that have a problem of their own, found by halving repeatedly.

    Args:
        num_rows: the number of rows.
        problem: rows -> what is wrong with them together, or None.
        known: the problem of all rows together, if the caller knows it already.
    """
    faults: dict[int, str] = {}
    waiting: list[tuple[range, str | None]] = [(range(num_rows), known)]
    while waiting:
        rows, found = waiting.pop()
        found = found or problem(rows)
        if found and len(rows) == 1:
            faults[rows.start] = found
        elif found:
            middle = rows.start + len(rows) // 2
            waiting += [(range(rows.start, middle), None), (range(middle, rows.stop), None)]
    return faults


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
    except OSError:
        raise
    except OF_THE_MACHINE:
        # The machine failed, not the events. A replay may find enough memory and succeed.
        raise
    except Exception as error:
        # A network or loss of the user's own may raise anything. Nothing has been changed by it,
        # and a replay meets the same error.
        kind = "" if isinstance(error, _USUAL) else f"{type(error).__name__}: "
        raise DataError(f"{what}: {kind}{error!s:.500}") from error
