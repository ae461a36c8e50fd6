"""Where units lie after some come and go: index arithmetic only."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynopt_ray.structure.grouping import Key
from dynopt_ray.structure.groups import Slice, WidthGroup


@dataclass(frozen=True, eq=False)
class Change:
    """How the units of one group change.

    Attributes:
        group: the group before.
        keep: LongTensor, the units that stay, in order.
        source: LongTensor, one entry per new unit: the unit it is a copy of, or -1 for a fresh
            one. New units follow those that stay.
    """

    group: WidthGroup
    keep: Tensor
    source: Tensor

    @property
    def added(self) -> int:
        """Number of units more (negative: fewer) than before."""
        return len(self.keep) + len(self.source) - self.group.width


@dataclass(frozen=True, eq=False)
class Axis:
    """The new layout of one dimension of one tensor.

    Attributes:
        index: LongTensor (new size,): the old coordinate that each new one continues; those of
            new units have the one they copy, or -1.
        new: LongTensor: the new coordinates of new units, in rising order.
        read: bool tensor beside `new`: whether the tensor reads the units there.
        moved: LongTensor (old size,): old coordinate -> new one, or -1.
        added: group name -> LongTensor (new units, k): where its new units lie.
    """

    index: Tensor
    new: Tensor
    read: Tensor
    moved: Tensor
    added: Mapping[str, Tensor]


def new_axes(changes: Sequence[Change], sizes: Mapping[Key, int]) -> dict[Key, Axis]:
    """The new layout of every dimension that the changes touch."""
    members: dict[Key, list[tuple[Change, Slice]]] = defaultdict(list)
    for change in changes:
        for s in change.group.slices:
            members[s.parameter, s.dim].append((change, s))
    return {key: _axis(sizes[key], here) for key, here in members.items()}


def moved_group(group: WidthGroup, change: Change | None, axes: Mapping[Key, Axis]) -> WidthGroup:
    """The group after the dimensions that it lies on got a new layout."""
    if change is None and not any((s.parameter, s.dim) in axes for s in group.slices):
        return group
    slices = []
    for s in group.slices:
        axis = axes.get((s.parameter, s.dim))
        positions = s.positions if change is None else s.positions[change.keep]
        if axis is not None:
            positions = axis.moved[positions]
            if group.name in axis.added:
                positions = torch.cat([positions, axis.added[group.name]])
        slices.append(replace(s, positions=positions))
    return replace(group, width=len(slices[0].positions), slices=tuple(slices))


def _axis(size: int, members: Sequence[tuple[Change, Slice]]) -> Axis:
    """Drop the coordinates of removed units and insert those of new ones.

    A new unit's coordinates follow those of the group's last unit, run by run: a channel that is
    flattened to 3 × 3 adds 9 neighbours, a head in fused q, k and v adds a block to each.
    """
    kept = torch.ones(size, dtype=torch.bool)
    for change, s in members:
        if len(change.keep) < change.group.width:
            gone = torch.ones(change.group.width, dtype=torch.bool)
            gone[change.keep] = False
            kept[s.positions[gone].flatten()] = False
    stay = torch.nonzero(kept).flatten()
    # An old coordinate c sorts at 2c, what is inserted after it at 2c + 1.
    order_keys, origins, reads = [2 * stay], [stay], [torch.zeros(len(stay), dtype=torch.bool)]
    inserted: list[tuple[str, list[Tensor]]] = []
    count = len(stay)
    for change, s in members:
        if not len(change.source):
            continue
        blocks = []
        for columns in torch.split(torch.arange(s.positions.shape[1]), list(s.runs)):
            after = s.positions[-1, columns[-1]]
            origin = s.positions[change.source.clamp(min=0)][:, columns]
            origin = torch.where(change.source[:, None] >= 0, origin, -1)
            order_keys.append((2 * after + 1).expand(origin.numel()))
            origins.append(origin.flatten())
            reads.append(torch.full((origin.numel(),), s.role == "in"))
            blocks.append(torch.arange(count, count + origin.numel()).reshape(origin.shape))
            count += origin.numel()
        inserted.append((change.group.name, blocks))
    order = torch.cat(order_keys).argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(count))
    moved = torch.full((size,), -1).scatter_(0, stay, place[: len(stay)])
    new = place[len(stay) :]
    return Axis(
        index=torch.cat(origins)[order],
        new=new.sort().values,
        read=torch.cat(reads)[len(stay) :][new.argsort()],
        moved=moved,
        added={name: torch.cat([place[b] for b in blocks], dim=1) for name, blocks in inserted},
    )
