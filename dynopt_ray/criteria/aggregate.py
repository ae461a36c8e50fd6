"""From scores of coordinates to scores of units."""

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from dynopt_ray.errors import UnknownNameError
from dynopt_ray.structure import Role, WidthGroup

Aggregate = Literal["sum", "mean", "max"]
"""How what a unit has in several slices becomes one score."""

AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)


def check_aggregate(aggregate: str) -> None:
    """Refuse any other word.

    Raises:
        UnknownNameError: that.
    """
    if aggregate not in AGGREGATES:
        raise UnknownNameError("aggregate", aggregate, AGGREGATES)


def sums_per_slice(
    group: WidthGroup, values: Mapping[str, Tensor], *, roles: Collection[Role]
) -> Tensor:
    """Sum what each unit has in each slice of some roles.

    A unit's part of a slice is everything at its positions along the slice's dimension: the
    whole kernel of a channel, all columns that a flattened channel became, all rows of a head.
    A unit with k positions has the sum over the k, so scores of units of one group compare with
    each other, and those of groups with more weights per unit are larger (`comparable` undoes
    that).

    Args:
        group: the units.
        values: parameter name -> tensor of its shape. Slices that lie in none of them (buffers)
            do not count.
        roles: which slices count.

    Returns:
        Tensor (slices, group.width), float32, on the device of the first of the values.
    """
    device = next((value.device for value in values.values()), torch.device("cpu"))
    sums = [torch.zeros(0, group.width, device=device)]
    for s in group.slices:
        if s.role in roles and s.parameter in values:
            value = values[s.parameter].movedim(s.dim, 0)
            per_position = value.reshape(len(value), -1).sum(1, dtype=torch.float32)
            per_unit = per_position[s.positions.to(value.device)].sum(1)
            sums.append(per_unit.to(device)[None])
    return torch.cat(sums)


def sum_over_units(
    group: WidthGroup, values: Mapping[str, Tensor], *, roles: Collection[Role]
) -> Tensor:
    """The same over all those slices: Tensor (group.width,), zero where no slice counts."""
    return sums_per_slice(group, values, roles=roles).sum(0)


def aggregated(per_slice: Tensor, aggregate: Aggregate) -> Tensor:
    """One figure per unit, of (slices, width); zero where no slice counts."""
    if not len(per_slice):
        return per_slice.new_zeros(per_slice.shape[1])
    if aggregate == "max":
        return per_slice.amax(0)
    return per_slice.sum(0) if aggregate == "sum" else per_slice.mean(0)


def reading_roles(group: WidthGroup) -> frozenset[Role]:
    """The roles whose slices, at zero, make a unit disappear: what reads it.

    A few units are read by no parameter (coordinates of queries and keys meet only each other);
    they disappear with what makes them.
    """
    if any(s.role == "in" for s in group.slices):
        return frozenset({"in"})
    return frozenset({"out", "scale"})
