"""Tensors in whatever holds them."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def given_tensors(output: Any) -> Iterable[Tensor]:
    """What a network gives: also where an object of any class holds it."""
    return list(tensors_in(output)) or tensors_in(getattr(output, "__dict__", ()))


def tensors_in(value: Any) -> Iterable[Tensor]:
    """All tensors in nested tuples, lists and dicts, in order."""
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


def storage_of(tensor: Tensor) -> int | None:
    """What tells whether two tensors share memory; within `vmap` there is no saying."""
    try:
        storage: int = tensor.untyped_storage()._cdata
    except NotImplementedError:
        return None
    return storage
