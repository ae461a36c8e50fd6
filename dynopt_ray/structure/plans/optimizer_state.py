"""Optimizer state that follows its parameter, for any optimizer that keeps state per parameter."""

import copy
import inspect
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import (
    tree_flatten,
    tree_leaves_with_path,
    tree_map_with_path,
    tree_unflatten,
)

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.errors import EditError
from dynopt_ray.structure.plans.resizing import Axes, resized
from dynopt_ray.structure.preserve import Transaction
from dynopt_ray.transfers import read_together, to_device

State = dict[str, Any]
Trees = TypeVar("Trees")
Optimizers = Optimizer | Sequence[Optimizer]
"""The optimizers of a network: one, or several that each train some of its parameters."""

_SIZES = (2, 3, 5, 7, 11)


def check_trains(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that trains none of a network's parameters: it would do nothing.

    Raises:
        EditError: the optimizer trains none of the parameters, or is not a torch optimizer.
    """
    if not isinstance(optimizer, Optimizer):
        raise EditError(f"{optimizer!r} is not a torch optimizer")
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise EditError(
            "the optimizer trains none of this network's parameters; create it from "
            "model.parameters()"
        )


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that cannot follow edits of a network.

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


def each_optimizer(optimizers: Optimizers | None) -> list[Optimizer]:
    """Return one, several or no optimizers as a list without repetitions."""
    if optimizers is None:
        return []
    several = optimizers if isinstance(optimizers, list | tuple) else [optimizers]
    return list(dict.fromkeys(several))


def leave(optimizer: Optimizer, parameter: Tensor, log: Transaction) -> None:
    """Remove a parameter and its state from an optimizer."""
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            log.set_item(group, "params", [p for p in group["params"] if p is not parameter])
            log.set_state(optimizer, parameter, None)


def join(optimizer: Optimizer, parameter: nn.Parameter, like: Tensor, log: Transaction) -> None:
    """Add a new parameter to the group of another one, if the optimizer trains that one."""
    for group in optimizer.param_groups:
        if any(p is like for p in group["params"]):
            log.set_item(group, "params", [*group["params"], parameter])
            log.set_state(optimizer, parameter, _first_state(type(optimizer), group, parameter))


@dataclass(frozen=True)
class _Start:
    """The initial value of one state tensor of a new parameter.

    Attributes:
        dims: for each dimension of the state tensor, the dimension of the parameter that it
            corresponds to; None if it has size 1.
        value: the number that fills the state tensor; None if the tensor holds the parameter's own
            values (or an average of them).
    """

    dims: tuple[int | None, ...]
    value: float | None


@dataclass(frozen=True)
class StateEntry:
    """The form of one entry of an optimizer's state.

    Attributes:
        dims: the dimensions that a tensor shares with its parameter, as for `_Start`; None if it is
            not such a tensor.
        is_floating_point: whether such a tensor holds floating-point numbers.
        is_number: whether the entry is a single number, as such or as a tensor.
        is_tensor: whether it is a tensor.
        device: the device of a tensor.
    """

    dims: tuple[int | None, ...] | None = None
    is_floating_point: bool = False
    is_number: bool = False
    is_tensor: bool = False
    device: torch.device | None = None


_STARTS: "weakref.WeakKeyDictionary[Optimizer, dict[Any, Mapping[Any, _Start]]]"
_STARTS = weakref.WeakKeyDictionary()  # a cache: finding them takes as long as the rest of an edit


class OptimizerState:
    """Computes how one optimizer's state follows its parameters. Writes nothing.

    State tensors that lie along dimensions of their parameter are resized with it, whether along
    all of its dimensions or some (the factored state of Adafactor). New entries start as they would
    for a new parameter. Single numbers (step counts) do not change.

    Attributes:
        optimizer: the optimizer.

    Raises:
        EditError: the optimizer's state cannot follow its parameters, or it trains none of the
            network's parameters.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        check_optimizer(optimizer, model)
        self.optimizer = optimizer
        self._starts = _STARTS.setdefault(optimizer, {})

    def resized(self, parameter: Tensor, axes: Axes, value: Tensor) -> State | None:
        """Return the state of one parameter in its new layout; None if there is none yet.

        Args:
            parameter: the parameter before it is resized.
            axes: the new layout of its dimensions.
            value: the parameter's value after it is resized.
        """

        def follow(tensor: Tensor, start: _Start) -> Tensor:
            along = {
                d: axes[of] for d, of in enumerate(start.dims) if of is not None and of in axes
            }
            new = value.to(tensor) if start.value is None else start.value
            return resized(tensor, along, new)

        return self._follow(parameter, follow)

    def masked(self, parameter: Tensor, keep: Tensor) -> State | None:
        """Return the state of one parameter with masked entries reset to their initial value.

        None if there is no state yet.
        """

        def follow(tensor: Tensor, start: _Start) -> Tensor:
            if tensor.shape != keep.shape:
                return tensor.clone()
            return tensor.masked_fill(~keep.to(tensor.device), start.value or 0.0)

        return self._follow(parameter, follow)

    def _follow(self, parameter: Tensor, follow: Any) -> State | None:
        state = self.optimizer.state.get(parameter)
        if not state:
            return None
        starts = self._starts_of(parameter)

        def followed(path: Any, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return copy.deepcopy(value)
            start = starts.get(path)
            if start is None or not _fits(value, parameter, start.dims):
                start = _guessed(value, parameter)
            if start is not None and start.dims:
                return follow(value, start)
            if value.numel() == 1:
                # Copy it: training will modify the new state, and `undo` needs the old one.
                return value.clone()
            raise EditError(
                f"{type(self.optimizer).__name__} keeps {path[0].key!r} of shape "
                f"{tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}; how "
                "to resize it is not known. Edit the network first and create the optimizer "
                "afterwards."
            )

        moved: State = tree_map_with_path(followed, dict(state))
        return moved

    def _starts_of(self, parameter: Tensor) -> Mapping[Any, _Start]:
        """Return how the state tensors of a new parameter start, by their path in the state."""
        for index, group in enumerate(self.optimizer.param_groups):
            if any(p is parameter for p in group["params"]):
                key = (index, parameter.dtype, parameter.device, parameter.ndim)
                if key not in self._starts:
                    self._starts[key] = _starts(type(self.optimizer), group, parameter)
                return self._starts[key]
        return {}


def _fits(value: Tensor, parameter: Tensor, dims: Sequence[int | None]) -> bool:
    return list(value.shape) == [1 if dim is None else parameter.shape[dim] for dim in dims]


def _guessed(value: Tensor, parameter: Tensor) -> _Start | None:
    """Guess, from its shape alone, the start of a tensor that a new parameter's state lacks."""
    if value.ndim != parameter.ndim:
        return None
    sizes = enumerate(zip(value.shape, parameter.shape, strict=True))
    dims = tuple(dim if one == other else None for dim, (one, other) in sizes)
    return _Start(dims, 0.0) if _fits(value, parameter, dims) else None


def _starts(
    kind: type[Optimizer], group: Mapping[str, Any], parameter: Tensor
) -> Mapping[Any, _Start]:
    """Find how state starts by stepping twins of the optimizer, on zeros and on other values.

    The constructor of a user's own optimizer may need arguments that its groups do not hold. Then
    the twins are made of its base class.
    """
    shape = _SIZES[: parameter.ndim]
    zeros = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
    others = torch.arange(1, zeros.numel() + 1, device="cpu").reshape(shape).to(zeros.dtype)
    others = to_device(others, zeros.device)
    for base in kind.__mro__[: kind.__mro__.index(Optimizer)]:
        for gradient in (zeros, zeros.to_sparse() if zeros.ndim else zeros):
            try:
                _, state = _stepped(base, group, zeros, gradient)
                values, copies = _stepped(base, group, others, gradient)
                return dict(_read_off(*_on_host((state, copies, [others, values]))))
            except OF_THE_MACHINE:
                raise
            except Exception:  # a foreign class may raise anything
                continue
    return {}


def state_after_steps(
    kind: type[Optimizer], group: Mapping[str, Any], parameter: Tensor
) -> dict[str, StateEntry] | None:
    """Return what an optimizer keeps for a parameter after two steps; the second uses the first.

    Args:
        kind: the class of the optimizer.
        group: the options of the parameter's group.
        parameter: any parameter of this number of dimensions, dtype and device.

    Returns:
        The entries by name; None if they cannot be found out.
    """
    zeros = torch.zeros(_SIZES[: parameter.ndim], dtype=parameter.dtype, device=parameter.device)
    for base in kind.__mro__[: kind.__mro__.index(Optimizer)]:
        for gradient in (zeros, zeros.to_sparse() if zeros.ndim else zeros):
            try:
                state = _stepped(base, group, zeros, gradient, times=2)[1]
            except OF_THE_MACHINE:
                raise
            except Exception:  # a foreign class may raise anything
                continue
            return {name: _entry(value, zeros) for name, value in state.items()}
    return None


def _entry(value: Any, parameter: Tensor) -> StateEntry:
    if not isinstance(value, Tensor):
        return StateEntry(is_number=isinstance(value, int | float) and not isinstance(value, bool))
    dim_of = {size: dim for dim, size in enumerate(parameter.shape)}
    dims = tuple(dim_of.get(size) for size in value.shape)
    if value.ndim and _fits(value, parameter, dims):
        return StateEntry(dims, value.is_floating_point(), is_tensor=True, device=value.device)
    return StateEntry(is_number=value.numel() == 1, is_tensor=True, device=value.device)


def _first_state(
    kind: type[Optimizer], group: Mapping[str, Any], parameter: nn.Parameter
) -> State | None:
    """Return the state that exists before the first step (Adagrad); usually None."""
    for base in kind.__mro__[: kind.__mro__.index(Optimizer)]:
        try:
            optimizer, twin = _twin(base, group, parameter.detach())
            return dict(optimizer.state[twin]) or None
        except OF_THE_MACHINE:
            raise
        except Exception:  # a foreign class may raise anything
            continue
    return None


def _twin(
    kind: type[Optimizer], group: Mapping[str, Any], value: Tensor
) -> tuple[Optimizer, nn.Parameter]:
    """Return a new optimizer with the options of a group, and its only parameter."""
    known = inspect.signature(kind).parameters
    options = {k: v for k, v in group.items() if k in known and k != "params"}
    parameter = nn.Parameter(value.clone())
    return kind([parameter], **options), parameter


def _stepped(
    kind: type[Optimizer],
    group: Mapping[str, Any],
    value: Tensor,
    gradient: Tensor,
    *,
    times: int = 1,
) -> tuple[Tensor, State]:
    """Return a parameter and its state after steps from a value, with a gradient of zeros."""
    optimizer, twin = _twin(kind, group, value)
    twin.grad = gradient.clone()
    for _ in range(times):
        optimizer.step()
    return twin.detach(), optimizer.state[twin]


def _on_host(trees: Trees) -> Trees:
    """Return the same dicts and lists of tensors, with those of a GPU copied to the CPU at once."""
    leaves, form = tree_flatten(trees)
    far = [
        number
        for number, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.is_cuda
    ]
    for number, value in zip(far, read_together([leaves[n] for n in far]), strict=True):
        leaves[number] = value
    found: Trees = tree_unflatten(leaves, form)
    return found


def _read_off(
    state: State, other_state: State, other_values: Sequence[Tensor]
) -> Iterator[tuple[Any, _Start]]:
    parameter = other_values[0]
    # All sizes of the twin's parameter differ, so a size identifies its dimension.
    dim_of = {size: dim for dim, size in enumerate(parameter.shape)}
    others = dict(tree_leaves_with_path(dict(other_state)))
    for path, value in tree_leaves_with_path(dict(state)):
        if isinstance(value, Tensor) and value.numel():
            dims = tuple(dim_of.get(size) for size in value.shape)
            if _fits(value, parameter, dims):
                copied = any(_equal(others[path], other) for other in other_values)
                first = 0.0 if value.is_meta else value.flatten()[0].item()
                yield path, _Start(dims, None if copied else first)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)
