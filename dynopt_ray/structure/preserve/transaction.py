"""Assignments to a live network that are either all kept or all undone."""

import copy
from collections.abc import Callable, Iterable, MutableMapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.structure.preserve.caches import saved_value, set_value
from dynopt_ray.structure.preserve.contents import Cache
from dynopt_ray.structure.preserve.masks import mask_of, set_mask
from dynopt_ray.structure.preserve.shared_memory import sharing_memory
from dynopt_ray.structure.preserve.surroundings import Surroundings

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Transaction:
    """A log of assignments. As a context manager it undoes them if its body fails.

    Use it through `within`, so that Ctrl-C cannot interrupt the rollback.

    Args:
        model: the network to change.
        optimizers: its optimizers.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        self._undo: list[Callable[[], None]] = []
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._shared = {
            id(tensors[one]): (one, two) for one, two in sharing_memory(tensors).items()
        }
        self._surroundings: Surroundings | None = Surroundings(model, optimizers)

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.roll_back()
            if self._surroundings is not None:
                self._surroundings.restore()
        self._surroundings = None

    def roll_back(self) -> None:
        """Undo all assignments, the last one first. Continues an interrupted rollback.

        An assignment leaves the log only after it has been undone, so it may be undone twice.
        """
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def forget(self) -> None:
        """Free the memory that `roll_back` would need."""
        self._undo.clear()

    def assign(self, tensor: Tensor, value: Tensor, grad: Tensor | None) -> None:
        """Give a parameter or buffer a new value of any shape; it stays the same object.

        Raises:
            EditError: it shares memory with another tensor, and the shape is another one.
        """
        if id(tensor) in self._shared:
            self._write(tensor, value, grad)
            return
        old, old_grad = tensor.data, tensor.grad
        self._undo.append(lambda: _assign(tensor, old, old_grad))
        _assign(tensor, _in_format_of(old, value), grad)

    def _write(self, tensor: Tensor, value: Tensor, grad: Tensor | None) -> None:
        """Write a new value into the memory of a tensor."""
        if tensor.shape != value.shape:
            one, other = self._shared[id(tensor)]
            raise EditError(
                f"{one!r} shares memory with {other!r}, so it cannot be resized; give both memory "
                "of their own (.clone()), or make them one parameter under two names"
            )
        old, old_grad = tensor.detach().clone(), tensor.grad
        self._undo.append(lambda: _overwrite(tensor, old, old_grad))
        _overwrite(tensor, value, grad)

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute; `roll_back` restores the old value."""
        old = getattr(owner, name)
        self._undo.append(lambda: setattr(owner, name, old))
        setattr(owner, name, value)

    def set_extra_state(self, module: nn.Module, value: Any) -> None:
        """Give a module another extra state; `roll_back` restores a copy of the old one."""
        old = copy.deepcopy(module.get_extra_state())
        self._undo.append(lambda: module.set_extra_state(old))
        module.set_extra_state(value)

    def set_kept(self, cache: Cache, value: Any) -> None:
        """Set an attribute that holds tensors of a pass, or remove it if the value is `ABSENT`."""
        old = saved_value(cache)
        self._undo.append(lambda: set_value(cache, old))
        set_value(cache, value)

    def set_item(self, owner: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Set an item of a dict; `roll_back` restores the old value."""
        if key in owner:
            old = owner[key]
            self._undo.append(lambda: owner.__setitem__(key, old))
        else:
            self._undo.append(lambda: owner.pop(key, None))
        owner[key] = value

    def set_state(
        self, optimizer: Optimizer, parameter: Tensor, state: dict[str, Any] | None
    ) -> None:
        """Replace an optimizer's state of one parameter; None removes it."""
        old = optimizer.state.get(parameter)
        self._undo.append(lambda: _set_state(optimizer, parameter, old))
        _set_state(optimizer, parameter, state)

    def set_mask(self, parameter: Tensor, keep: Tensor | None) -> None:
        """Replace a parameter's mask; None removes it."""
        old = mask_of(parameter)
        self._undo.append(lambda: set_mask(parameter, old))
        set_mask(parameter, keep)


def _assign(tensor: Tensor, value: Tensor, grad: Tensor | None) -> None:
    tensor.grad = None
    if tensor.shape != value.shape and tensor.requires_grad:
        # An autograd graph that is still alive (someone holds its loss) keeps the node that
        # accumulates this parameter's gradient, and the node keeps the old shape. Only a change of
        # dtype drops the node.
        other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = value
    tensor.grad = grad
    torch.clear_autocast_cache()  # it may hold a cast of the old value


def _overwrite(tensor: Tensor, value: Tensor, grad: Tensor | None) -> None:
    with torch.no_grad():
        tensor.copy_(value)
    tensor.grad = grad
    torch.clear_autocast_cache()


def _set_state(optimizer: Optimizer, parameter: Tensor, state: dict[str, Any] | None) -> None:
    if state is None:
        optimizer.state.pop(parameter, None)
    else:
        optimizer.state[parameter] = state


def _in_format_of(old: Tensor, value: Tensor) -> Tensor:
    """Return a value in the memory format of `old`, and in memory of processes if `old` is.

    Channels-last weights make convolutions several times faster. Processes that start later train
    the weights of `Module.share_memory` together.
    """
    value = _in_memory_format_of(old, value)
    if type(old) is Tensor and old.device.type == "cpu" and old.layout is torch.strided:
        memory: Any = value  # torch does not annotate these methods
        if old.untyped_storage().is_shared():
            memory.share_memory_()
    return value


def _in_memory_format_of(old: Tensor, value: Tensor) -> Tensor:
    if not old.is_contiguous():
        for ndim, memory_format in _CHANNELS_LAST.items():
            if old.ndim == ndim and old.is_contiguous(memory_format=memory_format):
                return value.contiguous(memory_format=memory_format)
    return value.contiguous()
