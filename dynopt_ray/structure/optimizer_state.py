"""Optimizer state that follows its parameter, for any optimizer that keeps state per parameter."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.structure.resize import Axes, resized

State = dict[str, Any]


def check_trains(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that trains none of a network's parameters: it would do nothing.

    Raises:
        EditError: that, or it is no optimizer.
    """
    if not isinstance(optimizer, Optimizer):
        raise EditError(f"{optimizer!r} is not a torch optimizer")
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise EditError(
            "the optimizer trains none of this network's parameters; make it of model.parameters()"
        )


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse optimizers that cannot follow a network.

    Raises:
        EditError: the optimizer keeps one state for all parameters (LBFGS), or it trains none of
            the network's parameters.
    """
    check_trains(optimizer, model)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise EditError(
            "LBFGS keeps one history over all parameters, which cannot follow a change of size. "
            "Edit the network first and create the optimizer afterwards."
        )


class OptimizerState:
    """Computes how one optimizer's state follows its parameters. Writes nothing.

    Tensors of a parameter's shape are moved like it, and so are factored ones, which have size 1
    along the dimensions that they sum over (Adafactor). New entries start as those of a new
    parameter would. Single numbers (step counts) stay.

    Raises:
        EditError: the optimizer's state cannot follow, or it trains none of the parameters.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        check_optimizer(optimizer, model)
        self._optimizer = optimizer
        self._starts: dict[tuple[int, torch.dtype, torch.device], Mapping[str, float]] = {}

    def resized(self, parameter: nn.Parameter, axes: Axes) -> State | None:
        """The state of one parameter in its new layout; None where there is none yet."""

        def follow(value: Tensor, start: float) -> Tensor:
            along = {d: a for d, a in axes.items() if value.shape[d] == parameter.shape[d]}
            return resized(value, along, start)

        return self._follow(parameter, follow)

    def masked(self, parameter: nn.Parameter, keep: Tensor) -> State | None:
        """The state of one parameter, its masked entries as a new parameter's."""
        return self._follow(
            parameter,
            lambda value, start: (
                torch.where(keep, value, start) if value.shape == keep.shape else value.clone()
            ),
        )

    def _follow(
        self, parameter: nn.Parameter, follow: Callable[[Tensor, float], Tensor]
    ) -> State | None:
        state = self._optimizer.state.get(parameter)
        if not state:
            return None
        starts = self._starting_values(parameter)
        followed: State = {}
        for key, value in state.items():
            if not isinstance(value, Tensor):
                followed[key] = copy.deepcopy(value)
            elif value.ndim and _lies_along(value, parameter):
                followed[key] = follow(value, starts.get(key, 0.0))
            elif value.numel() == 1:
                # A copy: the old state must not move on when training does.
                followed[key] = value.clone()
            else:
                raise EditError(
                    f"{type(self._optimizer).__name__} keeps {key!r} of shape "
                    f"{tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}; how "
                    "it would follow a change of size is not known. Edit the network first and "
                    "create the optimizer afterwards."
                )
        return followed

    def _starting_values(self, parameter: nn.Parameter) -> Mapping[str, float]:
        """What the state tensors of a new parameter start from, read off a twin optimizer."""
        for index, group in enumerate(self._optimizer.param_groups):
            if any(p is parameter for p in group["params"]):
                key = (index, parameter.dtype, parameter.device)
                if key not in self._starts:
                    self._starts[key] = _starting_values(type(self._optimizer), group, parameter)
                return self._starts[key]
        return {}


def _lies_along(value: Tensor, parameter: Tensor) -> bool:
    """Whether each dimension has the parameter's size, or 1 where it was summed over."""
    return value.ndim == parameter.ndim and all(
        one in (1, other) for one, other in zip(value.shape, parameter.shape, strict=True)
    )


def _starting_values(
    kind: type[Optimizer], group: Mapping[str, Any], parameter: nn.Parameter
) -> Mapping[str, float]:
    known = inspect.signature(kind).parameters
    options = {k: v for k, v in group.items() if k in known and k != "params"}
    dummy = nn.Parameter(torch.zeros(2, 2, dtype=parameter.dtype, device=parameter.device))
    dummy.grad = torch.zeros_like(dummy)
    try:
        twin = kind([dummy], **options)
    except TypeError:
        # A user's own optimizer with other arguments: moments that start at zero.
        return {}
    twin.step()
    return {
        key: float(value.flatten()[0])
        for key, value in twin.state[dummy].items()
        if isinstance(value, Tensor) and value.shape == dummy.shape
    }
