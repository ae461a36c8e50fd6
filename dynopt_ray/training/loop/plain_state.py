"""Optimizer state as plain data: dicts with string keys, lists, numbers and tensors."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dynopt_ray.errors import CheckpointError
from dynopt_ray.structure import IMPLEMENTATION, check_saved_state


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return `optimizer.state_dict()` with string keys, as JSON needs them, and copied tensors."""
    state = optimizer.state_dict()
    return {
        "state": {
            str(index): {key: copied(value) for key, value in entry.items()}
            for index, entry in state["state"].items()
        },
        "groups": [
            {key: copied(value) for key, value in group.items()} for group in state["param_groups"]
        ],
    }


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state that `optimizer_state` returned, perhaps of an optimizer on another device.

    The optimizer keeps its implementation (fused, capturable, …), which suits its device.
    """
    groups = []
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        # JSON turns tuples, such as `betas`, into lists.
        groups.append(
            {
                key: group[key]
                if key in IMPLEMENTATION and key in group
                else tuple(value)
                if isinstance(group.get(key), tuple)
                else copied(value)
                for key, value in saved.items()
            }
        )
    entries = {
        int(index): {key: _counted_here(copied(value)) for key, value in entry.items()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _counted_here(value: Any) -> Any:
    """Return a count of steps on the CPU; torch moves it if the implementation wants it to."""
    return value.cpu() if isinstance(value, Tensor) and not value.ndim else value


def check_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Check that an optimizer can have a state that `optimizer_state` may have returned.

    Raises:
        CheckpointError: it belongs to another optimizer, or has been altered.
    """
    kind, present = type(optimizer).__name__, optimizer.state_dict()["param_groups"]
    if not isinstance(state, Mapping) or state.keys() != {"state", "groups"}:
        raise CheckpointError(f"this is no state of {kind}: {state!r:.100}")
    saved, entries = state["groups"], state["state"]
    if not isinstance(entries, Mapping) or not _are_mappings([saved, [*entries.values()]]):
        raise CheckpointError(f"this is no state of {kind}: {state!r:.100}")
    sizes = [len(group["params"]) for group in present]
    saved_sizes = [_length(group.get("params")) for group in saved]
    if sizes != saved_sizes:
        raise CheckpointError(
            f"the optimizer has groups of {sizes!s:.200} parameters, but the state has groups of "
            f"{saved_sizes!s:.200}"
        )
    for group, other in zip(present, saved, strict=True):
        if group.keys() != other.keys():
            raise CheckpointError(
                f"the optimizer is {kind} with settings {sorted(group)}, but the state belongs to "
                f"one with {sorted(map(str, other))!s:.300}"
            )
    indices = [[str(index) for index in group["params"]] for group in present]
    if [[str(index) for index in group["params"]] for group in saved] != indices:
        raise CheckpointError(f"the state of {kind} names other parameters than the optimizer has")
    unknown = entries.keys() - {index for group in indices for index in group}
    if unknown:
        raise CheckpointError(f"the state of {kind} has the parameter {min(unknown)!r:.60}")
    states = [[entries.get(index) for index in group] for group in indices]
    check_saved_state(optimizer, saved, states)


def _are_mappings(several: list[Any]) -> bool:
    return all(
        isinstance(entries, list) and all(isinstance(entry, Mapping) for entry in entries)
        for entries in several
    )


def _length(value: object) -> int | None:
    return len(value) if isinstance(value, list) else None


def copied(value: Any) -> Any:
    """Return a copy that shares no memory with a tensor or with any other value."""
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
