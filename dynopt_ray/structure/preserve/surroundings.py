"""Snapshots of what a forward pass changes temporarily, restored even after an interrupt."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import Optimizer

from dynopt_ray.structure.preserve.contents import (
    containers_of_class,
    nested_containers,
    own_attribute,
    set_contents,
)
from dynopt_ray.structure.preserve.masks import mask_of, note_mask
from dynopt_ray.structure.preserve.torch_state import TorchState


class RandomState:
    """A snapshot of the random state of the CPU and of some CUDA devices.

    As a context, it restores the state on exit. `torch.random.fork_rng`, a generator function with
    `finally`, is not used: after an interrupt, its cleanup may run only when the generator is
    garbage-collected, perhaps much later.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._cuda = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
        self._state = torch.get_rng_state()
        self._cuda_states = [torch.cuda.get_rng_state(index) for index in self._cuda]

    def __enter__(self) -> "RandomState":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @property
    def cuda_devices(self) -> Sequence[int]:
        """Indices of the CUDA devices, ascending."""
        return self._cuda

    def restore(self) -> None:
        """Restore the random state."""
        torch.set_rng_state(self._state)
        for index, state in zip(self._cuda, self._cuda_states, strict=True):
            torch.cuda.set_rng_state(state, index)


class Surroundings:
    """A snapshot of a network's attributes, the random state and torch's modes.

    A forward pass may store results in attributes (flattened weights, rotary tables). Parameters
    that `functional_call` replaced stay replaced if Ctrl-C interrupts its cleanup.

    As a context, it restores all of this on exit; use it through `within`. The snapshot covers the
    attributes of all modules, the contents of those attributes that are dicts, lists or sets (which
    include parameters, buffers, children and hooks), masks, and hooks on parameters and optimizers.
    It does not cover the values in tensors.

    Args:
        model: the network.
        optimizers: its optimizers.

    Attributes:
        caches: (module, attribute) pairs: the dicts that received tensors after the snapshot.
            Filled by `restore`.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        self.caches: list[tuple[nn.Module, str]] = []
        self._attributes = [(module, dict(vars(module))) for module in model.modules()]
        self._contents = [
            (module, key, value, value.copy())
            for module, attributes in self._attributes
            for key, value in attributes.items()
            if isinstance(value, dict | list | set)
        ]
        # Nested containers, and those of the modules' classes: a pass without data must not leave
        # anything in them, either.
        kept = [value for _, key, value, _ in self._contents if own_attribute(key)]
        kept += [
            value
            for kind in {type(m) for m in model.modules()}
            for value in containers_of_class(kind)
        ]
        self._deeper = [(one, one.copy()) for value in kept for one in nested_containers(value)]
        hooks: list[dict[Any, Any]] = [one._optimizer_step_post_hooks for one in optimizers]
        hooks += [modules._global_forward_hooks, modules._global_forward_pre_hooks]
        self._hooks = [(live, live.copy()) for live in hooks]
        self._parameters = [
            (p, mask_of(p), dict(p._backward_hooks or {})) for p in model.parameters()
        ]
        self._random = RandomState(model.parameters())
        self._torch = TorchState()

    def __enter__(self) -> "Surroundings":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Restore everything that the snapshot covers."""
        self._torch.restore()
        for module, attributes in self._attributes:
            set_contents(vars(module), attributes)
        for module, key, live, kept in self._contents:
            if not live and not kept:  # true of most dicts of hooks
                continue
            if own_attribute(key) and _holds_tensor(live, kept):
                self.caches.append((module, key))
            set_contents(live, kept)
        for live, kept in self._deeper:
            set_contents(live, kept)
        for live, kept in self._hooks:
            set_contents(live, kept)
        for parameter, mask, hooks in self._parameters:
            note_mask(parameter, mask)
            if parameter._backward_hooks is not None:
                set_contents(parameter._backward_hooks, hooks)
        self._random.restore()


def _holds_tensor(live: Any, kept: Any) -> bool:
    """Return whether a dict has a tensor under a new key."""
    if not isinstance(live, dict) or live.keys() <= kept.keys():
        return False
    return any(isinstance(live[key], Tensor) for key in live.keys() - kept.keys())
