"""What learning rates that follow training have in common."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@runtime_checkable
class RateController(Protocol):
    """Sets the learning rates of an optimizer by what training shows.

    It belongs to one network and its optimizer, whose rates are its own from then on: a schedule
    beside it would be overruled. One that never looks at losses says so with an attribute
    `observes_losses = False`; the others are refused where nothing would be observed.
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


def set_rates(optimizer: Optimizer, change: Callable[[float], float]) -> None:
    """Change every group's learning rate; one that is a tensor stays the same tensor."""
    for group in optimizer.param_groups:
        rate = change(float(group["lr"]))
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def shapes(state: Mapping[str, Any]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shapes and dtypes of a network's state; what else its modules keep there has none."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
