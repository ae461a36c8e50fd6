"""Optimizer state that follows its parameter, for any optimizer that keeps state per parameter."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.structure.resize import Axes, resized

State = dict[str, Any]


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse optimizers whose state cannot follow a parameter.

    Raises:
        EditError: the optimizer keeps one state for all parameters (LBFGS).
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise EditError(
            "LBFGS keeps one history over all parameters, which cannot follow a change of size. "
            "Edit the network first and create the optimizer afterwards."
        )


class OptimizerState:
    """Computes how one optimizer's state follows its parameters. Writes nothing.

    Tensors of a parameter's shape are moved like it; their new entries start as those of a new
    parameter would. Everything else (step counts) stays.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        check_optimizer(optimizer)
        self._optimizer = optimizer
        self._starts: dict[tuple[int, torch.dtype, torch.device], Mapping[str, float]] = {}

    def resized(self, parameter: nn.Parameter, axes: Axes) -> State | None:
        """The state of one parameter in its new layout; None where there is none yet."""
        return self._follow(parameter, lambda value, start: resized(value, axes, start))

    def masked(self, parameter: nn.Parameter, keep: Tensor) -> State | None:
        """The state of one parameter, its masked entries as a new parameter's."""
        return self._follow(parameter, lambda value, start: torch.where(keep, value, start))

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
                followed[key] = value
            elif value.shape == parameter.shape and value.ndim:
                followed[key] = follow(value, starts.get(key, 0.0))
            else:
                # A copy: the old state must not move on when training does.
                followed[key] = value.clone()
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
