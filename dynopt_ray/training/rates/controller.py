"""What learning rates that follow training have in common."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.optim import Optimizer


@runtime_checkable
class RateController(Protocol):
    """Sets the learning rates of an optimizer by what training shows.

    It belongs to one network and its optimizer, whose rates are its own from then on: a schedule
    beside it would be overruled.
    """

    def observe(self, loss: float, /) -> object:
        """Take a loss: of validation data, or of a stream's events before they are learned."""

    def detach(self) -> None:
        """Leave the optimizer alone from now on, at the rate it has."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state but the optimizer's: numbers, strings, lists and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly as the controller that gave `state` would."""


ControllerFactory = Callable[[nn.Module, Optimizer], RateController]
"""Makes the controller of a network and its optimizer."""
