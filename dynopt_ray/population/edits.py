"""Growing and shrinking members, as `Grow` and `Shrink` do it for a real network.

Shapes: P members, U units of the layer in the stack, I and O as in `stack`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynopt_ray.arrays import IntArray
from dynopt_ray.errors import EditError
from dynopt_ray.population.compensation import StackedCut, refit
from dynopt_ray.population.stack import Population
from dynopt_ray.structure import fresh_tensors, seeded
from dynopt_ray.transfers import array_to_device, read_together, to_device


def grow(population: Population, layer: int, units: Mapping[int, int]) -> None:
    """Add units to a hidden layer of some members; they become its last units.

    Their incoming weights start as a real network's would, from the same draw. Their outgoing
    weights start at zero, so no member's output changes.

    Args:
        population: changed in place.
        layer: number of the hidden layer, from 0.
        units: member -> number of units to add, at least 1.

    Raises:
        EditError: there is no such hidden layer, or a number of units is below 1.
    """
    _check_layer(population, layer)
    for member, count in units.items():
        if count < 1:
            raise EditError(f"member {member}: {count} units to add; give at least 1")
    inputs = population.sizes(layer)[1]
    starts = {member: int(population.widths[member, layer]) for member in units}
    for member, count in units.items():
        population.widths[member, layer] += count
    population.reserve()
    for member, start in starts.items():
        stop, num_inputs = int(population.widths[member, layer]), int(inputs[member])
        rows = slice(start, stop)
        weight_OI, bias_O = _fresh(population, layer, member, stop, num_inputs)
        population.weights[layer][member, rows, :num_inputs] = weight_OI[rows]
        population.biases[layer][member, rows] = bias_O[rows]
        population.num_edits[member] += 1


def shrink(
    population: Population,
    layer: int,
    keep: Mapping[int, Tensor],
    *,
    compensate_NI: Tensor | None = None,
) -> None:
    """Remove units of a hidden layer of some members; the rest keep their order.

    Args:
        population: changed in place.
        layer: number of the hidden layer, from 0.
        keep: member -> bool tensor, one entry per unit of the member; at least one is True and
            at least one False.
        compensate_NI: inputs of the network. If given, the layer that reads the removed units is
            refitted on them.

    Raises:
        EditError: there is no such hidden layer, a member would lose no unit or all units, or the
            layer that reads the units has inputs or weights that are not finite.
    """
    _check_layer(population, layer)
    if not keep:
        return
    members = np.array(list(keep), dtype=np.int64)
    kept_each = read_together(list(keep.values()))
    gone_PU = torch.zeros(
        len(keep), population.weights[layer].shape[1], dtype=torch.bool, device="cpu"
    )
    for row, member, kept in zip(gone_PU, keep, kept_each, strict=True):
        _check_kept(member, kept, int(population.widths[member, layer]))
        row[: len(kept)] = ~kept
    gone = MarkedUnits(to_device(gone_PU, population.device), gone_PU.sum(1).numpy())
    shrink_marked(population, members, {layer: gone}, compensate_NI=compensate_NI)


@dataclass(frozen=True, eq=False)
class MarkedUnits:
    """Units of a hidden layer that some members lose.

    The host knows their numbers but not which they are, so it does not have to wait for a GPU.

    Attributes:
        gone_PU: bool tensor on the population's device, one row per member, True for units to
            remove. The units that the widest member has beyond the member's own are ignored.
        num_gone_P: number of units that each loses; fewer than it has.
    """

    gone_PU: Tensor
    num_gone_P: IntArray


def shrink_marked(
    population: Population,
    members: IntArray,
    marked: Mapping[int, MarkedUnits],
    *,
    compensate_NI: Tensor | None = None,
) -> None:
    """Shrink several hidden layers of members at once, as one plan of `Shrink` edits does.

    Args:
        population: changed in place.
        members: the members to shrink, each once. Each loses at least one unit.
        marked: number of a hidden layer, from 0 -> the units to remove there.
        compensate_NI: inputs of the network. If given, the layers that read removed units are
            refitted on them.

    Raises:
        EditError: see `shrink`.
    """
    total_P = np.sum([units.num_gone_P for units in marked.values()], axis=0)
    for layer, units in marked.items():
        _check_layer(population, layer)
        for place, member in enumerate(members):
            width, gone = int(population.widths[member, layer]), int(units.num_gone_P[place])
            if gone or not total_P[place]:
                _check_number(int(member), width, width - gone)
    places = population.places(members)
    orders = {
        layer: _kept_first(
            units.gone_PU, array_to_device(population.widths[members, layer], population.device)
        )
        for layer, units in marked.items()
    }
    if compensate_NI is not None:
        stays = {layer: _staying(population, members, layer, u) for layer, u in marked.items()}
        refit(population, StackedCut(members, places, stays), compensate_NI)
    for layer, units in marked.items():
        population.widths[members, layer] -= units.num_gone_P
        _select(population, layer, members, places, orders[layer])
    population.num_edits[members] += 1
    population.reserve()


def mask_marked(
    population: Population,
    members: IntArray,
    keeps: Mapping[int, Tensor],
    *,
    compensate_NI: Tensor | None = None,
) -> None:
    """Mask weights of several layers of members at once, as one plan of `Mask` edits does.

    Args:
        population: changed in place.
        members: the members, each once.
        keeps: number of a layer -> its new masks, bool (P, O, I); True in padding.
        compensate_NI: inputs of the network. If given, the layers that lose weights are refitted
            on them.

    Raises:
        EditError: a layer has inputs or weights that are not finite.
    """
    places = population.places(members)
    if compensate_NI is not None:
        refit(population, StackedCut(members, places, keeps=keeps), compensate_NI)
    for layer, keep_POI in keeps.items():
        population.mask(layer)[places] = keep_POI
        for stack in population.tensors(layer)[:2]:
            stack[places] = stack[places] * keep_POI


def _staying(population: Population, members: IntArray, layer: int, units: MarkedUnits) -> Tensor:
    """Return which units of a layer remain, (P, U); False at padding."""
    widths = array_to_device(population.widths[members, layer], population.device)
    unit_U = torch.arange(units.gone_PU.shape[1], device=population.device)
    return (unit_U < widths[:, None]) & ~units.gone_PU


def _select(
    population: Population, layer: int, members: IntArray, places: Tensor, order_PU: Tensor
) -> None:
    """Reorder members' units, and set everything after the last remaining unit to zero."""
    width_P1 = array_to_device(population.widths[members, layer], order_PU.device)[:, None]
    stays_PU = torch.arange(order_PU.shape[1], device=order_PU.device) < width_P1
    rows = order_PU[:, :, None]
    for stack in population.tensors(layer):
        index = rows.expand(-1, -1, stack.shape[2]) if stack.ndim == 3 else order_PU
        stays = stays_PU[:, :, None] if stack.ndim == 3 else stays_PU
        stack[places] = stack[places].gather(1, index).mul_(stays)
    for stack in population.tensors(layer + 1)[:2]:
        index = order_PU[:, None].expand(-1, stack.shape[1], -1)
        stack[places] = stack[places].gather(2, index).mul_(stays_PU[:, None])
    for dim, keep in ((1, population.masks[layer]), (2, population.masks[layer + 1])):
        if keep is not None:
            index, gone = (rows, ~stays_PU[:, :, None])
            if dim == 2:
                index, gone = index.transpose(1, 2), gone.transpose(1, 2)
            chosen = keep[places].gather(dim, index.expand(-1, *keep.shape[1:]))
            keep[places] = chosen.logical_or_(gone)


def _kept_first(gone_PU: Tensor, width_P: Tensor) -> Tensor:
    """Return the order of each member's units: kept units, removed units, then padding."""
    unit_U = torch.arange(gone_PU.shape[1], device=gone_PU.device)
    rank_PU = gone_PU.to(torch.int8).masked_fill(unit_U >= width_P[:, None], 2)
    return rank_PU.argsort(dim=1, stable=True)


def _fresh(
    population: Population, layer: int, member: int, outputs: int, inputs: int
) -> tuple[Tensor, Tensor]:
    linear = population.linear(layer)
    assert linear.bias is not None
    draw = (int(population.seeds[member]), int(population.num_edits[member]))
    drawn = fresh_tensors(
        linear,
        {"weight": (outputs, inputs), "bias": (outputs,)},
        {"weight": linear.weight, "bias": linear.bias},
        seeded(draw, "fresh", population.layout.names[layer]),
    )
    return drawn["weight"], drawn["bias"]


def _check_layer(population: Population, layer: int) -> None:
    last = population.num_layers - 2
    if not 0 <= layer <= last:
        raise EditError(f"no hidden layer {layer}; they are numbered 0 to {last}")


def _check_kept(member: int, kept: Tensor, width: int) -> None:
    if kept.dtype != torch.bool or kept.shape != (width,):
        raise EditError(
            f"member {member}: keep is {kept.dtype} of shape {tuple(kept.shape)}; it needs one "
            f"bool per unit, so shape ({width},)"
        )
    _check_number(member, width, int(kept.sum()))


def _check_number(member: int, width: int, num_kept: int) -> None:
    if not 0 < num_kept < width:
        raise EditError(
            f"member {member}: keep leaves {num_kept} of {width} units; at least one must "
            "stay and one must go"
        )
