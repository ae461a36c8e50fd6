"""Where an optimizer keeps its state: moments with their parameter, counts of steps as it wants.

Whether the number of steps is kept on the device depends on the implementation. A fused kernel that
is given a count on the CPU reads memory of the host, and crashes or computes nonsense.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynopt_ray.structure.plans.optimizer_state import StateEntry, state_after_steps

IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Options that choose an implementation. They are not loaded, because the right choice depends on
the device that the optimizer now runs on."""


class StatePlaces:
    """Moves loaded state to where an optimizer keeps it.

    Args:
        optimizer: the optimizer that the state is loaded into; it is not changed.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._kind = type(optimizer)
        self._entries: dict[Any, Mapping[str, StateEntry]] = {}

    def moved(
        self, state: Mapping[str, Any], group: Mapping[str, Any], parameter: Tensor
    ) -> dict[str, Any]:
        """Return the state of a parameter, with moments of the parameter's device and dtype.

        Args:
            state: the loaded state.
            group: the parameter's group in the optimizer.
            parameter: the parameter.
        """
        return {
            name: value.to(device=parameter.device, dtype=parameter.dtype)
            if isinstance(value, Tensor) and value.ndim and value.is_floating_point()
            else value.to(self._device_of(name, group, parameter))
            if isinstance(value, Tensor) and not value.ndim
            else value
            for name, value in state.items()
        }

    def _device_of(self, name: str, group: Mapping[str, Any], parameter: Tensor) -> torch.device:
        """Return the device of a number that is kept as a tensor."""
        if parameter.device.type == "cpu":
            return parameter.device
        key = (id(group), parameter.dtype, parameter.device, parameter.ndim)
        if key not in self._entries:
            self._entries[key] = state_after_steps(self._kind, group, parameter) or {}
        known = self._entries[key].get(name)
        if known is not None and known.device is not None:
            return known.device
        # As torch decides it.
        on_device = group.get("fused") or group.get("capturable")
        return parameter.device if on_device else torch.device("cpu")
