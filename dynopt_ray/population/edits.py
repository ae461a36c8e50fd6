"""Growing and shrinking members, as `Grow` and `Shrink` do it for a real network.

Shapes: P members, U units of the layer in the stack, I and O as in `stack`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dynopt_ray.errors import EditError
from dynopt_ray.population.compensation import refit_consumers
from dynopt_ray.population.stack import Population
from dynopt_ray.structure import fresh_tensors, seeded


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
    for member, kept in keep.items():
        _check_kept(member, kept, int(population.widths[member, layer]))
    if compensate_NI is not None:
        refit_consumers(population, layer, keep, compensate_NI)
    order_PU = _kept_first(population, layer, keep)
    for member, kept in keep.items():
        population.widths[member, layer] = int(kept.sum())
        population.num_edits[member] += 1
    members = list(keep)
    _select(population, layer, members, order_PU)
    population.reserve()


def _select(population: Population, layer: int, members: list[int], order_PU: Tensor) -> None:
    """Reorder members' units, and set everything after the last remaining unit to zero."""
    width_P1 = torch.as_tensor(population.widths[members, layer], device=order_PU.device)[:, None]
    stays_PU = torch.arange(order_PU.shape[1], device=order_PU.device) < width_P1
    rows = order_PU[:, :, None]
    for stack in population.tensors(layer):
        index = rows.expand(-1, -1, stack.shape[2]) if stack.ndim == 3 else order_PU
        stays = stays_PU[:, :, None] if stack.ndim == 3 else stays_PU
        stack[members] = stack[members].gather(1, index).mul_(stays)
    for stack in population.tensors(layer + 1)[:2]:
        index = order_PU[:, None].expand(-1, stack.shape[1], -1)
        stack[members] = stack[members].gather(2, index).mul_(stays_PU[:, None])
    for dim, keep in ((1, population.masks[layer]), (2, population.masks[layer + 1])):
        if keep is not None:
            index, gone = (rows, ~stays_PU[:, :, None])
            if dim == 2:
                index, gone = index.transpose(1, 2), gone.transpose(1, 2)
            chosen = keep[members].gather(dim, index.expand(-1, *keep.shape[1:]))
            keep[members] = chosen.logical_or_(gone)


def _kept_first(population: Population, layer: int, keep: Mapping[int, Tensor]) -> Tensor:
    """Return the order of each member's units: kept units, removed units, then padding."""
    size = population.weights[layer].shape[1]
    gone_PU = torch.full((len(keep), size), 2, dtype=torch.int8, device="cpu")
    for row, kept in zip(gone_PU, keep.values(), strict=True):
        row[: len(kept)] = (~kept.cpu()).to(torch.int8)
    return gone_PU.argsort(dim=1, stable=True).to(population.device)


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
    if not 0 < int(kept.sum()) < width:
        raise EditError(
            f"member {member}: keep leaves {int(kept.sum())} of {width} units; at least one must "
            "stay and one must go"
        )
