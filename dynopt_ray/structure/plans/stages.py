"""Checking a plan and dividing it into stages, before anything is touched."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn

from dynopt_ray.errors import DynoptError, EditError, UnknownNameError
from dynopt_ray.structure.network import Network
from dynopt_ray.structure.plans.edits import Edit, Grow, Insert, Mask, Remove, Shrink
from dynopt_ray.structure.preserve import mask_of


class Masking(list[Mask]):
    """Masks of distinct parameters, which are applied together."""


class Resizing(list[Grow | Shrink]):
    """Edits of distinct width groups, which are resized together."""


PlanStage = Masking | Resizing | Insert | Remove


def as_edits(plan: Any) -> tuple[Any, ...]:
    """Return the edits of a plan, which may be a single edit.

    Raises:
        EditError: it is neither an edit nor a list of anything.
    """
    if isinstance(plan, Edit):
        return (plan,)
    if isinstance(plan, type) or not isinstance(plan, Iterable):
        raise EditError(f"{plan!r} is not a plan; give an edit such as Grow('0', 1), or a list")
    return tuple(plan)


def check_arguments(optimizer: Any, seed: Any) -> None:
    """Refuse arguments of `apply` that would be ignored.

    Raises:
        EditError: the seed is no whole number, or the list of optimizers is empty.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise EditError(f"seed is {seed!r}; give a whole number, or None")
    if isinstance(optimizer, list | tuple) and not optimizer:
        raise EditError("optimizer is an empty list; pass the network's optimizer, or None")


def check_plan(network: Network, plan: Sequence[Edit]) -> tuple[list[PlanStage], Sequence[Edit]]:
    """Check every edit and divide the plan into stages whose edits can be applied together.

    Returns:
        The stages up to and including the first `Insert` or `Remove`, and the edits after it. Those
        can be checked only after it has been applied, because it changes which names exist.

    Raises:
        EditError: an edit cannot be applied or would change nothing.
        UnknownNameError: an edit names nothing in the network.
    """
    stages: list[PlanStage] = []
    last: PlanStage | None = None
    touched: set[str] = set()  # names that the last stage edits
    widths = network.widths
    for place, edit in enumerate(plan):
        if isinstance(edit, Insert | Remove):
            _check_block(network, edit)
            return [*stages, edit], plan[place + 1 :]
        if isinstance(edit, Mask):
            _check_mask(network, edit, widths)
            if not isinstance(last, Masking) or edit.parameter in touched:
                last, touched = Masking(), set()
                stages.append(last)
            last.append(edit)
            touched.add(edit.parameter)
            continue
        if not isinstance(edit, Grow | Shrink):
            raise EditError(f"{edit!r} is not an edit. Known: Grow, Shrink, Mask, Insert, Remove.")
        name = network[edit.group].name
        if isinstance(edit, Grow):
            _check_grow(network, edit)
            widths[name] += edit.units
        else:
            widths[name] = _check_shrink(network, edit, widths[name])
        if not isinstance(last, Resizing) or name in touched:
            last, touched = Resizing(), set()
            stages.append(last)
        last.append(edit)
        touched.add(name)
    return stages, ()


def _check_block(network: Network, edit: Insert | Remove) -> None:
    names = [edit.block] if isinstance(edit, Remove) else [edit.after, *edit.like]
    modules = dict(network.model.named_modules())
    for name in names:
        if not name or name not in modules:
            raise _no_module(network.model, name, modules)
    if isinstance(edit, Insert):
        parent = modules[edit.after.rpartition(".")[0]]
        if not isinstance(parent, nn.Sequential | nn.ModuleList):
            raise EditError(
                f"Insert(after={edit.after!r}): its parent is a {type(parent).__name__}, whose "
                "forward pass would not call a new block; only nn.Sequential and nn.ModuleList do"
            )
    if isinstance(edit, Remove) and not any(True for _ in modules[edit.block].parameters()):
        raise EditError(
            f"Remove({edit.block!r}): it has no parameters, so it is not a block; removing it "
            "would change nothing but the function of the network"
        )
    if isinstance(edit, Remove) and edit.block not in network.blocks:
        raise EditError(
            f"Remove({edit.block!r}): it is not a block. A block takes a tensor and returns one of "
            f"the same shape, once per forward pass. Blocks: {', '.join(network.blocks) or 'none'}"
        )


def _no_module(model: nn.Module, name: str, modules: Mapping[str, nn.Module]) -> DynoptError:
    """Return the error for a name that is no module, or that of a module with another name."""
    found = dict(model.named_modules(remove_duplicate=False)).get(name) if name else None
    if found is None:
        return UnknownNameError("module", name, filter(None, modules))
    first = next(other for other, module in modules.items() if module is found)
    return EditError(f"{name!r} is the same module as {first!r}, so neither can be edited alone")


def _check_grow(network: Network, edit: Grow) -> None:
    group = network[edit.group]
    if edit.units % group.step:
        raise EditError(
            f"Grow({edit.group!r}, units={edit.units}): this group grows in steps of {group.step}"
        )
    if edit.exact and not group.exact_growth:
        raise EditError(
            f"Grow({edit.group!r}): more units change the output: {group.why_inexact}. Pass "
            "exact=False to accept that."
        )


def _check_shrink(network: Network, edit: Shrink, width: int) -> int:
    """Check an edit and return the width that it leaves."""
    group = network[edit.group]
    side, units = ("remove", edit.remove) if edit.keep is None else ("keep", edit.keep)
    units = units or ()
    if edit.num_bools not in (None, width):
        raise EditError(
            f"Shrink({edit.group!r}, {side}=…) has {edit.num_bools} bools for {width} units"
        )
    wrong = [u for u in units if not 0 <= u < width]
    if wrong:
        raise EditError(
            f"Shrink({edit.group!r}, {side}=…): no unit {wrong[0]}; they are numbered 0 to "
            f"{width - 1}"
        )
    if len(set(units)) != len(units):
        raise EditError(f"Shrink({edit.group!r}, {side}=…) names a unit twice")
    left = len(units) if side == "keep" else width - len(units)
    if left == width:
        raise EditError(f"Shrink({edit.group!r}, {side}=…) removes nothing")
    if left < group.min_width:
        raise EditError(
            f"Shrink({edit.group!r}, {side}=…) would leave {left} of {width} units; at least "
            f"{group.min_width} must stay"
        )
    if (width - left) % group.step:
        raise EditError(
            f"Shrink({edit.group!r}, {side}=…): this group shrinks in steps of {group.step}"
        )
    return left


def _check_mask(network: Network, edit: Mask, widths: Mapping[str, int]) -> None:
    parameters = dict(network.model.named_parameters())
    if edit.parameter not in parameters:
        raise UnknownNameError("parameter", edit.parameter, parameters)
    parameter = parameters[edit.parameter]
    shape = list(parameter.shape)
    for group in network.groups:
        for s in group.slices:
            if s.parameter == edit.parameter:
                shape[s.dim] += (widths[group.name] - group.width) * s.positions.shape[1]
    if list(edit.keep.shape) != shape:
        raise EditError(
            f"Mask({edit.parameter!r}): keep has shape {tuple(edit.keep.shape)}, but the parameter "
            f"has shape {tuple(shape)}"
        )
    old = mask_of(parameter)
    if bool(edit.keep.all()) and old is None:
        raise EditError(f"Mask({edit.parameter!r}) keeps every weight: it would change nothing")
    if old is not None and old.shape == edit.keep.shape and torch.equal(old.cpu(), edit.keep.cpu()):
        raise EditError(f"Mask({edit.parameter!r}) is the mask that the parameter already has")
