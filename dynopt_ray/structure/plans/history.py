"""The history of a network: the plans that were applied to it. Saved and loaded with it."""

import json
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure.plans.edits import (
    Edit,
    Insert,
    Mask,
    Remove,
    plan_from_json,
    plan_to_json,
)

History = tuple[tuple[Edit, ...], ...]

HISTORIES: "weakref.WeakKeyDictionary[nn.Module, History]" = weakref.WeakKeyDictionary()
"""Network -> the plans applied to it. Written by transactions."""

RESIZED: "weakref.WeakKeyDictionary[nn.Module, frozenset[tuple[str, int]]]"
RESIZED = weakref.WeakKeyDictionary()
"""Network -> the (tensor, dimension) pairs that plans have resized. Written by transactions."""


def history_of(model: nn.Module) -> History:
    """The plans that were applied to a network and not undone, oldest first.

    Applied to a freshly constructed network, they reproduce its blocks, widths and masks, but not
    its weights. Of the masks of one parameter, only the last is kept (and the last before each
    `Insert`). So the memory of a history is bounded by a byte per weight and a few numbers per
    removed unit. A copy of a network has no history.

    Args:
        model: the network that was traced or loaded.

    Returns:
        The plans; `plan_to_json` writes one as text.
    """
    if not isinstance(model, nn.Module):
        raise EditError(f"history_of(model): {model!r} is not a network (an nn.Module)")
    return HISTORIES.get(model, ())


def extended(history: History, plan: Sequence[Edit]) -> History:
    """Return a history with one more plan, without masks that a later one replaces or removes."""
    kept: list[tuple[Edit, ...]] = []
    replaced: set[str] = set()  # parameters that have a later mask
    for old in reversed([*history, tuple(map(_noted, plan))]):
        edits: list[Edit] = []
        for edit in reversed(old):
            if isinstance(edit, Insert):
                replaced.clear()  # the inserted copies took the masks of that time
            if not isinstance(edit, Mask):
                edits.append(edit)
                continue
            if edit.parameter not in replaced and not bool(edit.keep.all()):
                edits.append(edit)
            replaced.add(edit.parameter)
        kept.append(tuple(reversed(edits)))
    return tuple(filter(None, reversed(kept)))


def _noted(edit: Edit) -> Edit:
    """Return an edit in a form that can be repeated on a network with other weights."""
    if isinstance(edit, Mask):
        return replace(edit, keep=edit.keep.cpu().clone())  # the caller may modify the original
    return replace(edit, exact=False) if isinstance(edit, Remove) else edit


def to_state(history: History) -> list[list[dict[str, Any]]]:
    """Return a history in the form written to files: JSON-able values, and masks as tensors."""
    return [[_to_dict(edit) for edit in plan] for plan in history]


def from_state(state: Iterable[Iterable[Mapping[str, Any]]]) -> History:
    """Return the history that `to_state` wrote.

    Raises:
        EditError: an entry is not an edit.
    """
    return tuple(tuple(_from_dict(dict(item)) for item in plan) for plan in state)


def _to_dict(edit: Edit) -> dict[str, Any]:
    if isinstance(edit, Mask):
        return {"edit": "mask", "parameter": edit.parameter, "keep": edit.keep}
    item: dict[str, Any] = json.loads(plan_to_json([edit]))[0]
    return item


def _from_dict(item: Mapping[str, Any]) -> Edit:
    if item["edit"] == "mask":
        return Mask(str(item["parameter"]), keep=item["keep"])
    return plan_from_json(json.dumps([item]))[0]
