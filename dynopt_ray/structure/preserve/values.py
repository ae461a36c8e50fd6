"""Copies of the values that a plan does not replace, so that `undo` can restore them, too.

A plan gives the tensors that it touches new memory, so their old values need no copy. Training
modifies all other tensors, and the optimizer's state of theirs, in place.
"""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

_Trained = tuple[Optimizer, Tensor]
"""An optimizer and one of its parameters."""


class Values:
    """The present values of some tensors and of the optimizer state of some parameters.

    Args:
        tensors: the tensors.
        optimizers: the optimizers that train some of them.
        replaced: the ids of optimizers and parameters whose state is replaced and needs no copy.
        earlier: earlier values; copies of what has not changed since are shared with them.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        optimizers: Iterable[Optimizer] = (),
        replaced: Collection[tuple[int, int]] = (),
        earlier: "Values | None" = None,
    ) -> None:
        known: Mapping[int, tuple[Tensor, Tensor]] = {} if earlier is None else earlier._by_tensor
        states: Mapping[_Trained, Any] = {} if earlier is None else earlier._states
        self._by_tensor: dict[int, tuple[Tensor, Tensor]] = {
            id(t): (t, _copied(t, known.get(id(t), (None, None))[1]))
            for t in tensors
            if not t.is_meta
        }
        self._states: dict[_Trained, Any] = {
            (optimizer, p): _copied_state(optimizer.state.get(p), states.get((optimizer, p)))
            for optimizer in optimizers
            for group in optimizer.param_groups
            for p in group["params"]
            if (id(optimizer), id(p)) not in replaced and not p.is_meta
        }

    def restore(self) -> None:
        """Write the values back. Tensors that have another shape by now are left as they are."""
        for tensor, value in self._by_tensor.values():
            _write(tensor, value)
        for (optimizer, parameter), state in self._states.items():
            if state is None:
                optimizer.state.pop(parameter, None)
            elif parameter in optimizer.state:
                _write_state(optimizer.state[parameter], state)
            else:
                optimizer.state[parameter] = tree_map_only(Tensor, torch.clone, state)


def _copied(value: Tensor, earlier: Any) -> Tensor:
    return earlier if _is_same(value, earlier) else value.detach().clone()


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two tensors are equal; False on other devices, which nothing waits for."""
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return (
        both
        and one.device.type == "cpu"
        and (one.dtype, one.device, one.layout) == (other.dtype, other.device, other.layout)
        and one.layout == torch.strided
        and not one.is_quantized
        and torch.equal(one, other)
    )


def _copied_state(state: Any, earlier: Any) -> Any:
    if not isinstance(state, dict):
        return copy.deepcopy(state)
    before = earlier if isinstance(earlier, dict) else {}
    return {
        key: _copied(value, before.get(key)) if isinstance(value, Tensor) else copy.deepcopy(value)
        for key, value in state.items()
    }


def _write(tensor: Tensor, value: Tensor) -> None:
    if tensor.shape == value.shape and not _is_same(tensor, value):
        with torch.no_grad():
            tensor.copy_(value)


def _write_state(live: Any, kept: Mapping[str, Any]) -> None:
    """Write one parameter's state back; compiled steps may hold its tensors."""
    for added in live.keys() - kept.keys():
        del live[added]
    for key, value in kept.items():
        present = live.get(key)
        if not isinstance(value, Tensor):
            live[key] = copy.deepcopy(value)
        elif isinstance(present, Tensor) and present.shape == value.shape:
            _write(present, value)
        else:
            live[key] = value.clone()
