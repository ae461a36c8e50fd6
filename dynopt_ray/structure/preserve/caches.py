"""Tensors that modules keep from one pass to the next: in attributes, dicts or lists.

A table made of a parameter (the biases of an attention) has the sizes of that parameter, so an edit
must remove it, and a trace must see how it is made. Parameters, buffers and what shares their
memory are no such tensors, but a buffer that is None before the first pass is one. It is not saved
with the network, so it is looked for among the buffers that are not persistent.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from dynopt_ray.structure.preserve.contents import (
    Cache,
    containers_and_memories,
    own_attribute,
    set_contents,
)

ABSENT = object()
"""The value of an attribute that a module does not have."""

_DEPTH = 4
_NESTING = (dict, list, tuple)


def tensors_within(value: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, _NESTING):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_within(item, depth - 1)


def has_tensors(value: Any) -> bool:
    """Return whether there are tensors in nested dicts, lists and tuples."""
    return any(True for _ in tensors_within(value))


def filled_caches(model: nn.Module) -> list[Cache]:
    """Return the attributes of modules and of their classes that hold tensors now."""
    own = {_memory(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    kept: list[tuple[Cache, Any]] = [
        ((module, name), value)
        for module in model.modules()
        for name, value in vars(module).items()
        if own_attribute(name)
    ]
    kept += containers_and_memories(dict.fromkeys(map(type, model.modules())))[0]
    return [
        cache
        for cache, value in kept
        if any(_memory(tensor) not in own for tensor in tensors_within(value))
    ] + [
        (module, name)
        for module in model.modules()
        for name in sorted(module._non_persistent_buffers_set)
        if (value := module._buffers.get(name)) is not None and value.is_floating_point()
    ]


def emptied(value: Any) -> Any:
    """Return the value of an attribute without the tensors in it; None for a tensor."""
    if isinstance(value, dict):
        return type(value)({k: v for k, v in value.items() if not has_tensors(v)})
    return [] if isinstance(value, list) else None


def value_of(cache: Cache) -> Any:
    """Return the value of an attribute, or `ABSENT`."""
    owner, name = cache
    own = vars(owner)
    if name in own or isinstance(owner, type):
        return own.get(name, ABSENT)
    return owner._buffers.get(name, ABSENT)


def saved_value(cache: Cache) -> Any:
    """Return the value of an attribute, to be set again later; see `set_value`."""
    value = value_of(cache)
    return value.copy() if isinstance(cache[0], type) else value


def set_value(cache: Cache, value: Any) -> None:
    """Set or remove an attribute, without hooks of the owner's class.

    A container of a class stays the same object, because others may hold it.
    """
    owner, name = cache
    if isinstance(owner, type):
        set_contents(vars(owner)[name], value)
        return
    is_buffer = name in owner._buffers or name in owner._non_persistent_buffers_set
    own = owner._buffers if is_buffer else vars(owner)
    if value is ABSENT:
        own.pop(name, None)
    else:
        own[name] = value


def _memory(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # sparse tensors have no storage of their own
        return id(tensor)
