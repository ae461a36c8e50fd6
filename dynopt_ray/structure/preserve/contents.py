"""The dicts, lists and sets in which a network keeps what its passes may change."""

import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

Cache = tuple[nn.Module | type[nn.Module], str]
"""A module or its class, and the name of an attribute in which it keeps tensors."""

CONTAINERS = (dict, list, set)
"""A tuple, because a union of types would be made anew at each of many thousand checks."""

_DEPTH = 4
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_NOT_OWN = ("torch.", "builtins")
_REGISTERED = ("_parameters", "_buffers", "_modules")
_NO_STATE = (nn.Module, Tensor, type, types.ModuleType, types.FunctionType, types.MethodType)


def own_attribute(name: str) -> bool:
    """Whether an attribute of a module is not one that every module has."""
    return name not in _OF_EVERY_MODULE


def containers_and_memories(
    kinds: Iterable[type[nn.Module]],
) -> tuple[list[tuple[Cache, Any]], list[Callable[[], None]]]:
    """Return what module classes keep, except those of torch.

    Returns:
        containers: the dicts, lists and sets that the classes define, each with its place.
        memories: functions that clear the results that methods keep (`functools.lru_cache`).
    """
    containers: list[tuple[Cache, Any]] = []
    memories = []
    own = [kind for kind in kinds if not kind.__module__.startswith(_NOT_OWN)]
    for base in dict.fromkeys(base for kind in own for base in kind.__mro__):
        if base.__module__.startswith(_NOT_OWN):
            continue
        for name, value in vars(base).items():
            if isinstance(value, CONTAINERS):
                if not name.startswith("__"):
                    containers.append(((base, name), value))
                continue
            function = getattr(value, "__func__", value)  # of a static method or a class method
            if callable(clear := getattr(function, "cache_clear", None)):
                memories.append(clear)
    return containers, memories


def nested_containers(value: Any, depth: int = _DEPTH) -> Iterable[Any]:
    """Yield a dict, list or set and the containers nested in it, down to `depth` levels."""
    if depth and isinstance(value, CONTAINERS):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from nested_containers(item, depth - 1)


def containers_of(model: nn.Module) -> list[Any]:
    """Return what a forward pass can write to and read again later: each container once.

    These are the attributes of all modules, their parameters, buffers and children, the containers
    in their attributes and classes, and the attributes of other objects that they hold.
    """
    found: dict[int, Any] = {}
    for module in model.modules():
        for container in _of_module(module):
            found.setdefault(id(container), container)
    for _, value in containers_and_memories(dict.fromkeys(map(type, model.modules())))[0]:
        for container in nested_containers(value):
            found.setdefault(id(container), container)
    return list(found.values())


def _of_module(module: nn.Module) -> Iterator[Any]:
    attributes = vars(module)
    yield attributes
    yield from (attributes[name] for name in _REGISTERED)
    for name, value in attributes.items():
        if own_attribute(name):
            yield from nested_containers(value)
            if hasattr(value, "__dict__") and not isinstance(value, _NO_STATE):
                yield vars(value)


def set_contents(live: Any, kept: Any) -> None:
    """Give a dict, list or set the contents of another one."""
    if isinstance(live, list):
        live[:] = kept
    elif isinstance(live, set):
        live.clear()
        live.update(kept)
    elif live.keys() == kept.keys():
        live.update(kept)
    else:  # restores the order of the keys, too
        live.clear()
        live.update(kept)
