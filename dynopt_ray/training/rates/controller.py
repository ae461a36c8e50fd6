"""The protocol of LR controllers, which adapt learning rates to training."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@runtime_checkable
class RateController(Protocol):
    """Sets the learning rates of an optimizer according to the progress of training.

    A controller belongs to one network and its optimizer and alone sets the optimizer's rates: it
    would overrule a schedule. A controller that ignores losses has the attribute
    `observes_losses = False`. All other controllers are refused if no loss would be observed.
    """

    def observe(self, loss: float, /) -> object:
        """Take a loss of validation data, or of events of a stream before they are learned."""

    def detach(self) -> None:
        """Stop controlling the optimizer, which keeps its present rates."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the optimizer's: numbers, strings, lists and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly as the controller whose `state_dict` this is."""


ControllerFactory = Callable[[nn.Module, Optimizer], RateController]
"""(network, its optimizer) -> a controller for them."""


def set_rates(optimizer: Optimizer, change: Callable[[float], float]) -> None:
    """Apply a function to the learning rate of every group; tensors are changed in place."""
    for group in optimizer.param_groups:
        rate = change(float(group["lr"]))
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def shapes(state: Mapping[str, Any]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shape and dtype of every tensor in a state dict; other entries are skipped."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
