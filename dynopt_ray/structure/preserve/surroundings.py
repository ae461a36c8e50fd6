"""What a pass through a network changes for a while, kept to put it back whatever happens."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import Optimizer

from dynopt_ray.structure.preserve.masks import mask_of, note_mask
from dynopt_ray.structure.preserve.torch_state import TorchState

_DEPTH = 4
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class RandomState:
    """The state of the CPU's generator and of some CUDA devices'; a context that puts it back.

    Not a function with `finally`, as `torch.random.fork_rng` is: what an interrupt leaves of such a
    context runs only when it is collected, perhaps long after.
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
        """Numbers of the CUDA devices, in rising order."""
        return self._cuda

    def restore(self) -> None:
        """Put it back."""
        torch.set_rng_state(self._state)
        for index, state in zip(self._cuda, self._cuda_states, strict=True):
            torch.cuda.set_rng_state(state, index)


class Surroundings:
    """Attributes of a network, random state and torch's modes as they are now.

    A forward pass may keep what it computes in attributes (flattened weights, rotary tables), and
    parameters that `functional_call` has replaced stay so when Ctrl-C meets it at its end.

    A context that puts them back: entered twice, `with it, it:`, also when Ctrl-C meets its exit.
    Attributes of the modules are kept, and the contents of those that are dicts or lists (also
    what a module holds: parameters, buffers, children, hooks), masks, and hooks on parameters and
    optimizers. Not kept: what tensors contain.

    Args:
        model: the network.
        optimizers: its optimizers.

    Attributes:
        caches: modules and the dicts of theirs that got tensors meanwhile; known when restored.
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
        # Deeper, and in their classes: a pass without data must leave nothing there either.
        kept = [value for _, key, value, _ in self._contents if key not in _OF_EVERY_MODULE]
        kept += [value for kind in {type(m) for m in model.modules()} for value in _of_class(kind)]
        self._deeper = [(one, one.copy()) for value in kept for one in _containers(value)]
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
        """Put everything back."""
        self._torch.restore()
        for module, attributes in self._attributes:
            _set_contents(vars(module), attributes)
        for module, key, live, kept in self._contents:
            if not live and not kept:  # most hooks
                continue
            if key not in _OF_EVERY_MODULE and _holds_tensor(live, kept):
                self.caches.append((module, key))
            _set_contents(live, kept)
        for live, kept in self._deeper:
            _set_contents(live, kept)
        for live, kept in self._hooks:
            _set_contents(live, kept)
        for parameter, mask, hooks in self._parameters:
            note_mask(parameter, mask)
            if parameter._backward_hooks is not None:
                _set_contents(parameter._backward_hooks, hooks)
        self._random.restore()


def _of_class(kind: type[nn.Module]) -> list[Any]:
    """The dicts and lists that a class of modules keeps for all of them, torch's own apart."""
    own = [base for base in kind.__mro__ if not base.__module__.startswith(("torch.", "builtins"))]
    return [
        value
        for base in own
        for key, value in vars(base).items()
        if isinstance(value, dict | list | set) and not key.startswith("__")
    ]


def _containers(value: Any, depth: int = _DEPTH) -> Iterable[Any]:
    """A dict, list or set, and those that it holds."""
    if depth and isinstance(value, dict | list | set):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item, depth - 1)


def _holds_tensor(live: Any, kept: Any) -> bool:
    """Whether a dict has a tensor under a new key."""
    if not isinstance(live, dict) or live.keys() <= kept.keys():
        return False
    return any(isinstance(live[key], Tensor) for key in live.keys() - kept.keys())


def _set_contents(live: Any, kept: Any) -> None:
    if isinstance(live, list):
        live[:] = kept
    elif isinstance(live, set):
        live.clear()
        live.update(kept)
    elif live.keys() == kept.keys():
        live.update(kept)
    else:  # in their order, too
        live.clear()
        live.update(kept)
