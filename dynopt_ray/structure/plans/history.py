"""Which edits made a network what it is; kept beside it, saved and loaded with it."""

import json
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

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


def history_of(model: nn.Module) -> History:
    """The plans that were applied to a network and not undone, oldest first.

    Applied to what the network's constructor makes, they give its blocks, widths and masks, though
    not its weights. Of the masks of one parameter only the last is kept (and the last before each
    `Insert`), so what this takes is bounded by a byte per weight and a few numbers per unit
    removed. A copy of a network has no history.

    Args:
        model: a network, as it was traced or loaded.

    Returns:
        Plans; `plan_to_json` writes one as text.
    """
    return HISTORIES.get(model, ())


def extended(history: History, plan: Sequence[Edit]) -> History:
    """A history with one more plan; masks that a later one replaces or removes are left out."""
    kept: list[tuple[Edit, ...]] = []
    replaced: set[str] = set()  # parameters that a later mask is of
    for old in reversed([*history, tuple(map(_noted, plan))]):
        edits: list[Edit] = []
        for edit in reversed(old):
            if isinstance(edit, Insert):
                replaced.clear()  # its copies have the masks of then
            if not isinstance(edit, Mask):
                edits.append(edit)
                continue
            if edit.parameter not in replaced and not bool(edit.keep.all()):
                edits.append(edit)
            replaced.add(edit.parameter)
        kept.append(tuple(reversed(edits)))
    return tuple(filter(None, reversed(kept)))


def _noted(edit: Edit) -> Edit:
    """An edit as it can be done again, on a network with other weights."""
    if isinstance(edit, Mask):
        return replace(edit, keep=edit.keep.cpu().clone())  # the caller may go on to change theirs
    return replace(edit, exact=False) if isinstance(edit, Remove) else edit


def to_state(history: History) -> list[list[dict[str, Any]]]:
    """A history as what is written to files: JSON, and masks as tensors."""
    return [[_to_dict(edit) for edit in plan] for plan in history]


def from_state(state: Iterable[Iterable[Mapping[str, Any]]]) -> History:
    """The history that `to_state` wrote.

    Raises:
        EditError: an edit is none.
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
