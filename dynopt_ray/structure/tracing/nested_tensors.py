"""Find the tensors in nested containers."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_PLAIN = (int, float, str, slice, torch.dtype, torch.device)


def output_tensors(output: Any) -> Iterable[Tensor]:
    """Return the tensors in a network's output, or in its attributes if it is a custom object."""
    return list(tensors_in(output)) or tensors_in(getattr(output, "__dict__", ()))


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
