"""Snapshots of what a forward pass changes temporarily, restored even after an interrupt."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import Optimizer

from dynopt_ray.structure.preserve.caches import ABSENT, has_tensors
from dynopt_ray.structure.preserve.contents import (
    CONTAINERS,
    Cache,
    containers_and_memories,
    nested_containers,
    own_attribute,
    set_contents,
)
from dynopt_ray.structure.preserve.masks import mask_of, note_mask
from dynopt_ray.structure.preserve.torch_state import TorchState


class RandomState:
    """A snapshot of the random state of the CPU, of some CUDA devices, of Python and of NumPy.

    As a context, it restores the state on exit. `torch.random.fork_rng`, a generator function with
    `finally`, is not used: after an interrupt, its cleanup may run only when the generator is
    garbage-collected, perhaps much later.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._cuda = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
        self._state = torch.get_rng_state()
        self._cuda_states = [torch.cuda.get_rng_state(index) for index in self._cuda]
        self._python, self._numpy = random.getstate(), np.random.get_state()

    def __enter__(self) -> "RandomState":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @property
    def cuda_devices(self) -> Sequence[int]:
        """Indices of the CUDA devices, ascending."""
        return self._cuda

    def drawn_outside_torch(self) -> bool:
        """Return whether Python's or NumPy's random numbers were drawn since the snapshot."""
        _, keys, *position = self._numpy
        _, keys_now, *position_now = np.random.get_state()
        same = position == position_now and np.array_equal(keys, keys_now)
        return not same or self._python != random.getstate()

    def restore(self) -> None:
        """Restore the random state."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
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
    Results that methods keep (`functools.lru_cache`) are forgotten at both ends.
    It does not cover the values in tensors.

    Args:
        model: the network.
        optimizers: its optimizers.

    Attributes:
        caches: the attributes that received tensors after the snapshot, each with the value to
            which an edit must set it back; `ABSENT` removes it. For a dict, the value is not used:
            the tensors in it are removed. Filled by `restore`.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        self.caches: dict[Cache, Any] = {}
        self._attributes = [(module, dict(vars(module))) for module in model.modules()]
        self._contents = [
            (module, key, value, value.copy())
            for module, attributes in self._attributes
            for key, value in attributes.items()
            if isinstance(value, CONTAINERS)
        ]
        # Nested containers, and those of the modules' classes: a pass without data must not leave
        # anything in them, either.
        kept = [value for _, key, value, _ in self._contents if own_attribute(key)]
        kinds = dict.fromkeys(type(module) for module, _ in self._attributes)
        self._of_classes, self._memories = containers_and_memories(kinds)
        kept += [value for _, value in self._of_classes]
        self._deeper = [(one, one.copy()) for value in kept for one in nested_containers(value)]
        hooks: list[dict[Any, Any]] = [one._optimizer_step_post_hooks for one in optimizers]
        hooks += [modules._global_forward_hooks, modules._global_forward_pre_hooks]
        self._hooks = [(live, live.copy()) for live in hooks]
        self._parameters = [
            (p, mask_of(p), dict(p._backward_hooks or {})) for p in model.parameters()
        ]
        self._forget_results()
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
            own = vars(module)
            for key in [k for k, value in own.items() if attributes.get(k) is not value]:
                before = attributes.get(key, ABSENT)
                if own_attribute(key) and has_tensors(own[key]) > has_tensors(before):
                    self.caches[module, key] = before
            set_contents(own, attributes)
        for module, key, live, kept in self._contents:
            if not live and not kept:  # true of most dicts of hooks
                continue
            if key == "_buffers":
                self._note_buffers(module, live, kept)
            if own_attribute(key) and _received_tensors(live, kept):
                self.caches[module, key] = None
            set_contents(live, kept)
        contents = {id(live): kept for live, kept in self._deeper}
        for cache, container in self._of_classes:
            if _received_tensors(container, contents[id(container)]):
                self.caches[cache] = None
        for live, kept in self._deeper:
            set_contents(live, kept)
        for live, kept in self._hooks:
            set_contents(live, kept)
        for parameter, mask, hooks in self._parameters:
            note_mask(parameter, mask)
            if parameter._backward_hooks is not None:
                set_contents(parameter._backward_hooks, hooks)
        self._forget_results()
        self._random.restore()

    def _forget_results(self) -> None:
        for clear in self._memories:
            clear()

    def _note_buffers(self, module: nn.Module, live: Any, kept: Any) -> None:
        """Note the buffers that were None or missing before."""
        for name, value in live.items():
            if value is not None and kept.get(name) is None:
                self.caches[module, name] = kept.get(name, ABSENT)


def _received_tensors(live: Any, kept: Any) -> bool:
    """Return whether a dict or list has tensors that it did not have before."""
    if isinstance(live, dict):
        return any(has_tensors(live[key]) for key in live.keys() - kept.keys())
    return isinstance(live, list) and has_tensors(live) > has_tensors(kept)
