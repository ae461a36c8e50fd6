"""Optimizer state as plain data: dicts with string keys, lists, numbers and tensors."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


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
    """Load a state that `optimizer_state` returned."""
    groups = []
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        # JSON turns tuples, such as `betas`, into lists.
        groups.append(
            {
                key: tuple(value) if isinstance(group.get(key), tuple) else copied(value)
                for key, value in saved.items()
            }
        )
    entries = {
        int(index): {key: copied(value) for key, value in entry.items()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def copied(value: Any) -> Any:
    """Return a copy that shares no memory with a tensor or with any other value."""
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
