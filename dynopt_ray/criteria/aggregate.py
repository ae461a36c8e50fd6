"""Combine values of single weights into one value per unit."""

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from dynopt_ray.errors import UnknownNameError
from dynopt_ray.structure import Role, WidthGroup
from dynopt_ray.transfers import to_device

Aggregate = Literal["sum", "mean", "max"]
"""How a unit's values from several slices are combined into one score."""

AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)


def check_aggregate(aggregate: str) -> None:
    """Refuse an unknown aggregate.

    Raises:
        UnknownNameError: `aggregate` is not "sum", "mean" or "max".
    """
    if aggregate not in AGGREGATES:
        raise UnknownNameError("aggregate", aggregate, AGGREGATES)


def sums_per_slice(
    group: WidthGroup, values: Mapping[str, Tensor], *, roles: Collection[Role]
) -> Tensor:
    """Sum the entries of each unit in each slice of the given roles.

    The entries of a unit in a slice are all entries at the unit's positions along the slice's
    dimension: the whole kernel of a channel, all columns that a flattened channel became, all
    rows of a head. The sum runs over all positions of the unit. Therefore the sums of units of
    one group can be compared with each other, while groups with more weights per unit have
    larger sums (`comparable` corrects for that).

    Args:
        group: the group whose units are scored.
        values: parameter name -> tensor of the parameter's shape. Slices of parameters or
            buffers that are not in it are skipped.
        roles: the roles whose slices count.

    Returns:
        Tensor (slices that count, group.width), float32, on the device of the first value.
    """
    device = next((value.device for value in values.values()), torch.device("cpu"))
    sums = [torch.zeros(0, group.width, device=device)]
    for s in group.slices:
        if s.role in roles and s.parameter in values:
            value = values[s.parameter].movedim(s.dim, 0)
            per_position = value.reshape(len(value), -1).sum(1, dtype=torch.float32)
            per_unit = per_position[to_device(s.positions, value.device)].sum(1)
            sums.append(per_unit.to(device)[None])
    return torch.cat(sums)


def sum_over_units(
    group: WidthGroup, values: Mapping[str, Tensor], *, roles: Collection[Role]
) -> Tensor:
    """Sum `sums_per_slice` over its slices: Tensor (group.width,), zeros if no slice counts."""
    return sums_per_slice(group, values, roles=roles).sum(0)


def aggregated(per_slice: Tensor, aggregate: Aggregate) -> Tensor:
    """Combine (slices, width) into one value per unit, (width,); zeros if there are no slices."""
    if not len(per_slice):
        return per_slice.new_zeros(per_slice.shape[1])
    if aggregate == "max":
        return per_slice.amax(0)
    return per_slice.sum(0) if aggregate == "sum" else per_slice.mean(0)


def reading_roles(group: WidthGroup) -> frozenset[Role]:
    """The roles whose slices, when set to zero, remove a unit's effect on the network.

    These are the slices that read the unit. A few units are read by no parameter: coordinates of
    queries and keys are only multiplied with each other. Their effect disappears when the slices
    that produce and scale them are zero.
    """
    if any(s.role == "in" for s in group.slices):
        return frozenset({"in"})
    return frozenset({"out", "scale"})
