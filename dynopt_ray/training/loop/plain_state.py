"""The state of an optimizer as plain data: dicts with string keys, lists, numbers, tensors."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with string keys and copied tensors, so that JSON can hold it."""
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
    """Put a state of `optimizer_state` back."""
    groups = []
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        # JSON has no tuples; `betas` was one.
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
    """A copy that shares nothing with a tensor or with any other value."""
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
