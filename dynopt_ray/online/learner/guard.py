"""The guard: the fourth step of online gradient descent."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from dynopt_ray.training import copied

Verdict = Literal["accepted", "shrunk", "rolled back"]
"""What became of an update."""


@dataclass(frozen=True)
class Guard:
    """Judges each update by what it did to the loss on the latest events.

    With V(θ) the mean loss of weights θ over the `window` events before the present one, in
    eval mode, and Δ the step the optimizer proposes, the weights become

        θ + 2⁻ᵏ·Δ  for the smallest k in 0 … max_halvings with
        V(θ + 2⁻ᵏ·Δ) <= V(θ) + tolerance·|V(θ)|,

    and stay θ when there is no such k. So an update is accepted (k = 0), shrunk or rolled back.

    Every event is predicted first, then learned, and only then enters the window: the update
    under judgement has not seen the window, although earlier ones have. Holding events out of
    learning altogether would make V unbiased, but costs a share of the stream; here V has to
    tell a step that breaks what was learned, not to estimate the error.

    A window that is not full yet judges too, because a rate that is too high kills a network in
    its first steps; before event one there is no window, and the event itself judges. A shrunk
    step keeps the optimizer's new state (its moments have seen the gradient)
    and BatchNorm statistics; a rolled-back one restores both, bit for bit.

    Attributes:
        window: W, the number of events V is measured on.
        tolerance: the relative rise of V that is accepted. A step on one event raises the loss
            of others a little even when it is right, so 0 would refuse most of them.
        max_halvings: how often a step is halved before it is rolled back.

    Raises:
        ValueError: a window or number below its minimum.

    References:
        The step "evaluate, then adjust" of online gradient descent; halving is backtracking
        line search (Armijo 1966) with an acceptance test on held-back loss instead of descent.
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
        """Whether a step that took V from `before` to `after` may stand; NaN may not."""
        return math.isfinite(after) and after <= before + self.tolerance * abs(before)


class Restore:
    """A network and its optimizer as they are now, to go back to or half-way back to.

    Args:
        model: the network; parameters and buffers are copied.
        optimizer: the optimizer; the state of every parameter is copied.
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
        """Move every parameter half-way back to where it was."""
        for parameter, before in self._parameters:
            if parameter.is_floating_point():
                parameter.lerp_(before, 0.5)

    @torch.no_grad()
    def roll_back(self) -> None:
        """Put weights, buffers and optimizer state back, bit for bit."""
        for tensor, before in (*self._parameters, *self._buffers):
            tensor.copy_(before)
        self._optimizer.state.clear()
        self._optimizer.state.update(self._state)
