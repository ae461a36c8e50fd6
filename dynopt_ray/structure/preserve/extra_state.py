"""Extra state: what modules keep outside of tensors and give with `get_extra_state`.

It is written to files without pickle, so it has to consist of JSON-able values and tensors. JSON
has no tuples, so they are marked and come back as tuples.
"""

import copy
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError

_TUPLE = "$tuple"


def has_extra_state(module: nn.Module) -> bool:
    """Whether the module's class defines `get_extra_state`."""
    return type(module).get_extra_state is not nn.Module.get_extra_state


def extra_states(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Return a copy of the extra state of each module that has one."""
    return [(m, copy.deepcopy(m.get_extra_state())) for m in model.modules() if has_extra_state(m)]


def storable_extra_state(name: str, module: nn.Module) -> Any:
    """Return a module's extra state in the form written to files.

    Raises:
        CheckpointError: it holds something that only pickle could store, or the module could not
            take it back.
    """
    if type(module).set_extra_state is nn.Module.set_extra_state:
        raise CheckpointError(
            f"module {name!r} ({type(module).__name__}) has get_extra_state but no "
            "set_extra_state, so its extra state could not be loaded; define both"
        )
    return _storable(module.get_extra_state(), f"the extra state of module {name!r}")


def from_stored(value: Any, like: Any = None) -> Any:
    """Return the extra state that `storable_extra_state` gave.

    Args:
        value: the stored form.
        like: the module's present extra state; tensors go to the devices of those there.
    """
    if isinstance(value, Tensor):
        return value.to(like.device) if isinstance(like, Tensor) else value
    if isinstance(value, Mapping):
        if value.keys() == {_TUPLE}:
            return tuple(_alike(value[_TUPLE], like))
        keys = like if isinstance(like, Mapping) else {}
        return {key: from_stored(entry, keys.get(key)) for key, entry in value.items()}
    return list(_alike(value, like)) if isinstance(value, list) else value


def _alike(values: Any, like: Any) -> Iterator[Any]:
    known = like if isinstance(like, list | tuple) and len(like) == len(values) else []
    for place, entry in enumerate(values):
        yield from_stored(entry, known[place] if known else None)


def _storable(value: Any, place: str) -> Any:
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        return value
    if value is None or (isinstance(value, bool | int | float | str) and not _is_enum(value)):
        return value
    if type(value) in (list, tuple):
        entries = [_storable(entry, f"{place}[{i}]") for i, entry in enumerate(value)]
        return entries if type(value) is list else {_TUPLE: entries}
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str or key.startswith("$"):
                raise CheckpointError(
                    f"{place} has the key {key!r}; keys must be strings that do not begin with $"
                )
        return {key: _storable(entry, f"{place}[{key!r}]") for key, entry in value.items()}
    raise CheckpointError(
        f"{place} is a {type(value).__name__}, which only pickle could store. Let get_extra_state "
        "return numbers, strings, lists, tuples, dicts and dense tensors"
    )


def _is_enum(value: object) -> bool:
    return isinstance(value, Enum)
