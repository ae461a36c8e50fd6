"""Assignments to a live network that are either all kept or all undone."""

import copy
from collections import defaultdict
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
from dynopt_ray.structure.preserve.values import Values

_Place = tuple[dict[str, Any], str]
"""The parameters or buffers of a module, and a name in them."""

_EMPTY = torch.Size((0,))
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
        self._replaced: set[int] = set()
        self._replaced_states: set[tuple[int, int]] = set()
        self._optimizers = tuple(optimizers)
        self.values: Values | None = None
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._tensors = [*tensors.values()]
        self._shared = {
            id(tensors[one]): (one, two) for one, two in sharing_memory(tensors).items()
        }
        self._places: dict[int, list[_Place]] = defaultdict(list)
        for module in model.modules():
            for registered in (module._parameters, module._buffers):
                for name, tensor in registered.items():
                    self._places[id(tensor)].append((registered, name))
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

    def keep_values(self, earlier: "Transaction | None") -> None:
        """Let `roll_back` restore what this transaction has not replaced, too.

        Args:
            earlier: the transaction before this one; copies of what did not change are shared.
        """
        tensors = {id(t): t for t in self._tensors if id(t) not in self._replaced}
        values = Values(
            tensors.values(),
            self._optimizers,
            self._replaced_states,
            None if earlier is None else earlier.values,
        )
        places = {id(t): self._places.get(id(t), ()) for t in tensors.values()}

        def restore() -> None:
            for key, tensor in tensors.items():
                _register(tensor, places[key], same_shape=True)
            values.restore()

        self.values = values
        self._undo.append(restore)

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
        self.values = None
        self._tensors.clear()

    def assign(self, tensor: Tensor, value: Tensor, grad: Tensor | None) -> None:
        """Give a parameter or buffer a new value of any shape; it stays the same object.

        `roll_back` also puts the object back where a pass has registered another one since, and
        keeps the dtype and device that the network has by then.

        Raises:
            EditError: it shares memory with another tensor, and the shape is another one.
        """
        self._replaced.add(id(tensor))
        if id(tensor) in self._shared:
            self._write(tensor, value, grad)
            return
        old, old_grad = tensor.data, tensor.grad
        places = self._places.get(id(tensor), [])
        self._undo.append(lambda: _put_back(tensor, old, old_grad, places))
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
        self._replaced_states.add((id(optimizer), id(parameter)))
        old = optimizer.state.get(parameter)
        self._undo.append(lambda: _set_state(optimizer, parameter, old))
        _set_state(optimizer, parameter, state)

    def set_mask(self, parameter: Tensor, keep: Tensor | None) -> None:
        """Replace a parameter's mask; None removes it."""
        old = mask_of(parameter)
        self._undo.append(lambda: set_mask(parameter, old))
        set_mask(parameter, keep)


def _put_back(tensor: Tensor, old: Tensor, grad: Tensor | None, places: Iterable[_Place]) -> None:
    """Give a tensor its old value, and register it again where another one took its place."""
    now = _register(tensor, places)
    if now.shape == _EMPTY or old.dtype.is_floating_point != now.dtype.is_floating_point:
        now = old  # an interrupted `_assign` leaves an empty tensor of another dtype
    kind: Any = {"dtype": now.dtype, "device": now.device}  # model.double(), model.to(device)
    _assign(tensor, old.to(**kind), None if grad is None else grad.to(**kind))


def _register(tensor: Tensor, places: Iterable[_Place], *, same_shape: bool = False) -> Tensor:
    """Register a tensor again where another one took its place, and return that one.

    With `same_shape`, a table that has grown with the inputs stays: attributes that are no tensors
    describe it.
    """
    now = tensor
    for registered, name in places:
        present = registered.get(name)
        if present is None or present is tensor:
            continue
        if not same_shape or present.shape == tensor.shape:
            now = registered[name]  # self.mean = 0.9 * self.mean + …
            registered[name] = tensor
    return now


def _assign(tensor: Tensor, value: Tensor, grad: Tensor | None) -> None:
    tensor.grad = None
    if tensor.shape != value.shape and tensor.requires_grad:
        # An autograd graph that is still alive (someone holds its loss) keeps the node that
        # accumulates this parameter's gradient, and the node keeps the old shape. Only a change of
        # dtype drops the node.
        other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
        tensor.data = torch.empty(_EMPTY, dtype=other, device=tensor.device)
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
