"""Take the tensors away that a network keeps of earlier passes, to trace how it makes them.

A layer may keep a table made of its parameters, and make it only if it is not there. If it is there
before the trace, the trace sees a tensor like any other data, and does not see the parameters. So
such a table is taken away first. What a module keeps is a cache if the next pass makes it again,
with the same values. Anything else (a state, a constant, a mask that the user set) is data.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.structure.preserve import (
    ABSENT,
    Cache,
    emptied,
    filled_caches,
    saved_value,
    set_value,
    tensors_within,
    value_of,
)
from dynopt_ray.structure.tracing.forward import Inputs, buffers_kept, on_device, run, undisturbed


def empty_caches(model: nn.Module, inputs: Inputs) -> None:
    """Empty the caches of a network; the caller restores them.

    Attributes of one name in modules of one class are tried together. Each trial is one pass in
    evaluation mode. A network without values is left as it is.

    Args:
        model: the network.
        inputs: its inputs.
    """
    alike: dict[tuple[type, str], list[Cache]] = defaultdict(list)
    device = next(model.parameters()).device
    for owner, name in filled_caches(model) if device.type != "meta" else ():
        alike[type(owner), name].append((owner, name))
    for caches in alike.values():
        kept = {cache: saved_value(cache) for cache in caches}
        for empty in _empty_values(kept):
            _set(empty)
            if _made_again(model, on_device(inputs, device), kept):
                break
            _set(kept)


def _empty_values(kept: Mapping[Cache, Any]) -> Iterator[dict[Cache, Any]]:
    """Yield what the attributes may be before the first pass: without tensors, None or missing."""
    yield {cache: emptied(value) for cache, value in kept.items()}
    if not any(isinstance(value, dict | list) for value in kept.values()):
        yield dict.fromkeys(kept, ABSENT)


def _set(values: Mapping[Cache, Any]) -> None:
    for cache, value in values.items():
        set_value(cache, value)


def _made_again(model: nn.Module, inputs: Inputs, kept: Mapping[Cache, Any]) -> bool:
    """Return whether a pass makes what the attributes held, with the same values."""
    with undisturbed(model, training=False), buffers_kept(model):
        try:
            run(model, inputs)
        except OF_THE_MACHINE:
            raise
        except Exception:  # the forward pass needs what was taken away, and may raise anything
            return False
        return all(_same(value_of(cache), value) for cache, value in kept.items())


def _same(now: Any, before: Any) -> bool:
    """Return whether a value holds the tensors of an earlier one; a dict may have other keys."""
    if isinstance(before, dict):
        both = now.keys() & before.keys() if isinstance(now, dict) else set()
        return bool(list(tensors_within(now))) and all(_same(now[k], before[k]) for k in both)
    ours, theirs = list(tensors_within(now)), list(tensors_within(before))
    return len(ours) == len(theirs) and all(map(_equal, ours, theirs))


def _equal(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and torch.allclose(one, other, equal_nan=True)
