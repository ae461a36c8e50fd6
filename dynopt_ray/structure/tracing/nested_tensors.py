"""Find the tensors in nested containers."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


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


def storage_of(tensor: Tensor) -> int | None:
    """Return a number that identifies a tensor's storage; None within `vmap`, which hides it."""
    try:
        storage: int = tensor.untyped_storage()._cdata
    except NotImplementedError:
        return None
    return storage
