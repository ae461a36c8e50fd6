"""The guard checks each update on the latest events, then accepts it, shrinks it or undoes it.

This is the fourth step of online gradient descent, "evaluate, then adjust". The guard measures the
mean loss V on a window of the latest events before and after each optimizer step. The step is
accepted if V has risen by at most a small tolerance. Otherwise it is halved, several times if
necessary, and finally undone. So no single step can raise V by more than the tolerance.

Why this detects harmful steps: every event is predicted first, then learned, and only then enters
the window. A step is therefore not judged on the event that it learns from, and a rise of V means
that it damages what the network has learned before. Earlier steps did learn from the window, so V
underestimates the true error. This does no harm, because V is only compared with itself. Holding
events out of learning altogether would remove this bias, but would cost a share of the stream.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from dynopt_ray.training import copied

Verdict = Literal["accepted", "shrunk", "rolled back"]
"""What the guard did with an update."""


@dataclass(frozen=True)
class Guard:
    """Judges each update by its effect on the loss of the latest events.

    Let V(θ) be the mean loss of weights θ over the `window` events before the present one, in
    eval mode, and let Δ be the step that the optimizer proposes. The weights become

        θ + 2⁻ᵏ·Δ  for the smallest k in 0 … max_halvings with
        V(θ + 2⁻ᵏ·Δ) <= V(θ) + tolerance·|V(θ)|,

    and stay θ if there is no such k. So an update is accepted (k = 0), shrunk or rolled back.

    The window is used even before it is full, because a rate that is too high ruins a network in
    its first steps. At the first event the window is empty, and V is measured on the event itself.
    A shrunk step keeps the optimizer's new state (its moments have seen the gradient) and the new
    BatchNorm statistics. Rolling back restores both, bit for bit.

    Attributes:
        window: the number of events on which V is measured, >= 1.
        tolerance: the accepted relative rise of V, >= 0. A step on one event raises the loss of
            others a little even if it is right, so 0 would reject most steps.
        max_halvings: the number of times a step is halved before it is rolled back, >= 0.

    Raises:
        ValueError: an argument is below its minimum.

    References:
        The step "evaluate, then adjust" of online gradient descent. Halving is backtracking line
        search (Armijo 1966); its acceptance test uses the loss on the window instead of sufficient
        descent.
    """

    window: int = 64
    tolerance: float = 0.05
    max_halvings: int = 5

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"Guard: window is {self.window}; it must hold at least 1 event")
        if not self.tolerance >= 0:
            raise ValueError(f"Guard: tolerance is {self.tolerance}; it must be >= 0")
        if self.max_halvings < 0:
            raise ValueError(f"Guard: max_halvings is {self.max_halvings}; it must be >= 0")

    def accepts(self, *, before: float, after: float) -> bool:
        """Whether a step that changed V from `before` to `after` is accepted; a NaN never is."""
        return math.isfinite(after) and after <= before + self.tolerance * abs(before)


class UpdateBackup:
    """A copy of a network and its optimizer, to undo a step completely or by half.

    Args:
        model: the network; its parameters and buffers are copied.
        optimizer: its optimizer; the state of every parameter is copied.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters = [(p, copied(p)) for p in model.parameters()]
        self._buffers = [(b, copied(b)) for b in model.buffers()]
        self._state = {
            parameter: {key: copied(value) for key, value in state.items()}
            for parameter, state in optimizer.state.items()
        }

    @torch.no_grad()
    def halve_step(self) -> None:
        """Move every parameter half-way back to its copied value."""
        for parameter, before in self._parameters:
            if parameter.is_floating_point():
                parameter.lerp_(before, 0.5)

    @torch.no_grad()
    def roll_back(self) -> None:
        """Restore parameters, buffers and optimizer state, bit for bit."""
        for tensor, before in (*self._parameters, *self._buffers):
            tensor.copy_(before)
        self._optimizer.state.clear()
        self._optimizer.state.update(self._state)
