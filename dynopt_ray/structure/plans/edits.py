"""Edits: data that describes how a network should change. A plan is a list of edits."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from dynopt_ray.errors import DynoptError, EditError, UnknownNameError

Init = Literal["fresh", "split"]
_INITS: tuple[Init, ...] = ("fresh", "split")
# The types of values in the JSON text of a plan.
_KINDS = {"group": str, "parameter": str, "block": str, "after": str, "exact": bool}


@dataclass(frozen=True)
class Grow:
    """Add units to a width group; they become its last units.

    Attributes:
        group: name of the width group.
        units: number of units to add, at least 1.
        init: "fresh" initialises the incoming weights of new units as the layer itself would, and
            their outgoing weights with zero (except those into units that are new in the same
            plan). "split" copies existing units and divides their outgoing weights unevenly
            between the copies (Net2Net, Chen et al. 2016).
        exact: True refuses growth that would change the network's output.
    """

    group: str
    units: int
    init: Init = "fresh"
    exact: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", _whole(self.units))
        if type(self.units) is not int or self.units < 1:
            raise EditError(
                f"Grow({self.group!r}, units={self.units!r}) adds nothing: units must be an "
                "integer of at least 1"
            )
        _check_exact(self, self.exact)
        if self.init not in _INITS:
            raise UnknownNameError("way to initialise new units", self.init, _INITS)


@dataclass(frozen=True)
class Shrink:
    """Remove units from a width group; the rest keep their order.

    Attributes:
        group: name of the width group.
        remove: indices of the units to remove, or one bool per unit; None if `keep` is given.
        keep: indices of the units to keep, or one bool per unit; None if `remove` is given.
    """

    group: str
    remove: Sequence[int] | None = field(default=None, kw_only=True)
    keep: Sequence[int] | None = field(default=None, kw_only=True)
    num_bools: int | None = field(default=None, init=False, repr=False, compare=False)
    """The number of bools that were given, which must equal the group's width; None for indices."""

    def __post_init__(self) -> None:
        if (self.remove is None) == (self.keep is None):
            raise EditError(f"Shrink({self.group!r}) needs either remove=… or keep=…, and not both")
        for side in ("remove", "keep"):
            value = getattr(self, side)
            if value is not None:
                indices, num_bools = _indices(self.group, side, value)
                object.__setattr__(self, side, indices)
                object.__setattr__(self, "num_bools", num_bools)


@dataclass(frozen=True, eq=False)
class Mask:
    """Hold some weights of a parameter at zero through training.

    Their gradients are zero from then on. Whatever else an optimizer does to them (momentum, weight
    decay) is reset after each of its steps, for any optimizer. A mask belongs to the parameter:
    copies of the network have no masks, but `save` and `load` keep them.

    Attributes:
        parameter: dotted name of the parameter.
        keep: bool tensor of the parameter's shape; False is held at zero.
    """

    parameter: str
    keep: Tensor = field(kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.keep, Tensor) or self.keep.dtype != torch.bool:
            raise EditError(
                f"Mask({self.parameter!r}) needs keep=<bool tensor of the parameter's shape>, got "
                f"{getattr(self.keep, 'dtype', type(self.keep).__name__)}"
            )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mask)
            and self.parameter == other.parameter
            and torch.equal(self.keep, other.keep)
        )

    def __hash__(self) -> int:
        return hash((self.parameter, tuple(self.keep.shape)))


@dataclass(frozen=True)
class Remove:
    """Take a block out, so that its input passes on unchanged.

    Attributes:
        block: name of a module that takes a tensor and returns one of the same shape; see
            `Graph.blocks`.
        exact: True refuses a block that changes its input, so the network's output does not
            change. The block's residual branch must be zero on the example inputs.
    """

    block: str
    exact: bool = True

    def __post_init__(self) -> None:
        _check_exact(self, self.exact)


@dataclass(frozen=True)
class Insert:
    """Insert a new block after another one; it passes its input on unchanged until it learns.

    The new block is a copy, including weights, of existing modules. The last layers of its residual
    branches start at zero. If it has no such branches, its only linear layer or convolution starts
    as the identity.

    Attributes:
        after: name of a module in an `nn.Sequential` or `nn.ModuleList`. The new block's name is
            this name with `_1` (or the next free number) appended.
        like: names of the modules to copy, in order; a single name may be passed as a string.
            Default: the module that the new block comes after.
    """

    after: str
    like: Sequence[str] = ()

    def __post_init__(self) -> None:
        like = (self.like,) if isinstance(self.like, str) else tuple(self.like)
        object.__setattr__(self, "like", like or (self.after,))


def _check_exact(edit: Any, exact: object) -> None:
    if not isinstance(exact, bool):
        raise EditError(f"{edit!r}: exact is {exact!r}; give True or False")


Edit = Grow | Shrink | Mask | Insert | Remove
Plan = Sequence[Edit]


def plan_to_json(plan: Iterable[Edit]) -> str:
    """Return a plan as JSON text; `plan_from_json` is the inverse."""
    return json.dumps([_to_dict(edit) for edit in plan])


def plan_from_json(text: str) -> list[Edit]:
    """Return the plan that `plan_to_json` wrote.

    Raises:
        EditError: the text is not a plan.
    """
    try:
        return [_from_dict(item) for item in json.loads(text)]
    except DynoptError as error:
        raise EditError(str(error)) from error
    except (TypeError, LookupError, ValueError, RuntimeError, OverflowError) as error:
        raise EditError(f"not a plan: {type(error).__name__}: {error}") from error


def _to_dict(edit: Edit) -> dict[str, Any]:
    match edit:
        case Grow():
            return {
                "edit": "grow",
                "group": edit.group,
                "units": edit.units,
                "init": edit.init,
                "exact": edit.exact,
            }
        case Remove():
            return {"edit": "remove", "block": edit.block, "exact": edit.exact}
        case Insert():
            return {"edit": "insert", "after": edit.after, "like": list(edit.like)}
        case Shrink():
            side = "remove" if edit.keep is None else "keep"
            return {"edit": "shrink", "group": edit.group, side: list(getattr(edit, side))}
        case Mask():
            # Most weights are kept or most are removed: list the rarer kind.
            flat = edit.keep.flatten()
            listed = bool(flat.sum() * 2 < flat.numel())
            return {
                "edit": "mask",
                "parameter": edit.parameter,
                "shape": list(edit.keep.shape),
                "kept" if listed else "removed": torch.nonzero(flat == listed).flatten().tolist(),
            }
        case _:
            raise EditError(f"{edit!r} is not an edit")


def _from_dict(item: Mapping[str, Any]) -> Edit:
    kind, values = item["edit"], {k: v for k, v in item.items() if k != "edit"}
    for key, value in values.items():
        if type(value) is not _KINDS.get(key, type(value)):
            raise EditError(f"not a plan: {key} is {value!r}, which has the wrong type")
    if kind == "grow":
        return Grow(**values)
    if kind == "shrink":
        return Shrink(**values)
    if kind == "remove":
        return Remove(**values)
    if kind == "insert":
        return Insert(**values)
    if kind == "mask":
        listed = "kept" in values
        size = torch.Size(values["shape"]).numel()
        at = values["kept" if listed else "removed"]
        keep = torch.full((size,), not listed, device="cpu")
        keep[torch.tensor(at, dtype=torch.long, device="cpu")] = listed
        return Mask(values["parameter"], keep=keep.reshape(values["shape"]))
    raise EditError(f"unknown edit {kind!r}. Known: grow, insert, mask, remove, shrink.")


def _whole(value: Any) -> Any:
    """Convert an integer of any library to Python's; return anything else unchanged."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _indices(group: str, side: str, value: Any) -> tuple[tuple[int, ...], int | None]:
    """Return unit indices as plain integers, and the number of bools if bools were given."""
    values: Any = value.tolist() if hasattr(value, "tolist") else value
    values = list(values) if isinstance(values, Iterable) else values
    if isinstance(values, list):
        if values and all(type(v) is bool for v in values):
            return tuple(i for i, v in enumerate(values) if v), len(values)
        values = [_whole(v) for v in values]
        if all(type(v) is int for v in values):
            return tuple(values), None
    raise EditError(
        f"Shrink({group!r}, {side}=…) needs a sequence of unit indices, or of bools with one "
        f"entry per unit, got {values!r:.60}"
    )
