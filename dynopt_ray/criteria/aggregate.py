"""From scores of coordinates to scores of units."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from dynopt_ray.structure import WidthGroup
from dynopt_ray.structure.record import Role


def sum_over_units(
    group: WidthGroup, values: Mapping[str, Tensor], *, roles: Collection[Role]
) -> Tensor:
    """Sum what each unit has in the slices of some roles.

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
        Tensor (group.width,), float32, zero where no slice counts.
    """
    total = torch.zeros(group.width)
    for s in group.slices:
        if s.role in roles and s.parameter in values:
            value = values[s.parameter].movedim(s.dim, 0)
            per_position = value.reshape(len(value), -1).sum(1, dtype=torch.float32)
            total = total.to(per_position.device)
            total += per_position[s.positions.to(per_position.device)].sum(1)
    return total


def reading_roles(group: WidthGroup) -> frozenset[Role]:
    """The roles whose slices, at zero, make a unit disappear: what reads it.

    A few units are read by no parameter (coordinates of queries and keys meet only each other);
    they disappear with what makes them.
    """
    if any(s.role == "in" for s in group.slices):
        return frozenset({"in"})
    return frozenset({"out", "scale"})
