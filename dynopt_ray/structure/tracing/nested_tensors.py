"""Find the tensors in nested containers."""

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (int, float, str, slice, torch.dtype, torch.device)
_CLOSED = (
    *(*_PLAIN, bytes, complex, type(None), type, nn.Module),
    *(types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType),
)
_DEPTH = 4


def output_tensors(output: Any) -> list[Tensor]:
    """Return the tensors in a network's output, also those in attributes of other objects.

    A distribution holds its parameters in attributes, and one distribution may hold others. Caches
    that a network returns for its next pass are not opened: their sizes are its own.
    """
    return [tensor for leaf in _leaves(output) for tensor in _held_by(leaf, _DEPTH)]


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what lies in nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for key in value.__dataclass_fields__:
            yield from _leaves(getattr(value, key, None))
    else:
        yield value


def _held_by(leaf: Any, depth: int) -> Iterator[Tensor]:
    """Yield a tensor, or the tensors in the attributes of another object."""
    if isinstance(leaf, Tensor):
        yield leaf
    elif depth and not isinstance(leaf, _CLOSED) and not _is_cache(leaf):
        for value in _attributes(leaf):
            for inner in _leaves(value):
                yield from _held_by(inner, depth - 1)


def _attributes(value: Any) -> Iterator[Any]:
    yield from getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            yield getattr(value, name, None)


def _is_cache(value: Any) -> bool:
    return any("Cache" in kind.__name__ for kind in type(value).__mro__)


def tensors_in(value: Any) -> Iterable[Tensor]:
    """Yield all tensors in nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, key))


def operands(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return all tensors in the arguments of an operation; faster than `tensors_in`."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif value is not None and not isinstance(value, _PLAIN):
            found += tensors_in(value)
    return found


def storage_of(tensor: Tensor) -> int | None:
    """Return a number that identifies a tensor's storage; None within `vmap`, which hides it."""
    try:
        storage: int = tensor.untyped_storage()._cdata
    except NotImplementedError:
        return None
    return storage
