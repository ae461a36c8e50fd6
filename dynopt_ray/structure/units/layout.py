"""The positions of units after some are added or removed, by index arithmetic alone."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dynopt_ray.structure.units.grouping import Key
from dynopt_ray.structure.units.groups import Slice, WidthGroup
from dynopt_ray.transfers import to_device


@dataclass(frozen=True, eq=False)
class Change:
    """How the units of one group change.

    Attributes:
        group: the group before the change.
        keep: LongTensor, the units that stay, in order.
        source: LongTensor, one entry per new unit: the unit that it copies, or -1 for a fresh
            one. New units come after those that stay.
    """

    group: WidthGroup
    keep: Tensor
    source: Tensor

    @property
    def added(self) -> int:
        """The number of units gained; negative if the group shrinks."""
        return len(self.keep) + len(self.source) - self.group.width


AxisPart = Literal["from", "new", "read", "made"]
"""Which indices of an axis; see `Axis.on`."""


@dataclass(frozen=True, eq=False)
class Axis:
    """The new layout of one dimension of one tensor.

    Attributes:
        index: LongTensor (new size,): new coordinate -> old coordinate with the same content; for
            a new unit, the coordinate that it copies, or -1.
        new: LongTensor: the new coordinates of new units, in increasing order.
        read: bool tensor, one entry per entry of `new`: whether the tensor reads the unit there.
        moved: LongTensor (old size,): old coordinate -> new coordinate, or -1 if it is removed.
        added: group name -> LongTensor (new units, k): the new coordinates of its new units.

    All tensors are on the CPU; `on` gives what resizing needs of them on another device.
    """

    index: Tensor
    new: Tensor
    read: Tensor
    moved: Tensor
    added: Mapping[str, Tensor]
    _placed: dict[tuple[str, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    def on(self, device: torch.device, what: AxisPart) -> Tensor:
        """Return indices on a device. They are copied once, though many tensors have this axis.

        Args:
            device: the device.
            what: "from" is the old coordinate of each new one, any for fresh units; "new" all new
                coordinates; "read" those of fresh units that the tensor reads; and "made" those of
                the other fresh units.
        """
        if (what, device) not in self._placed:
            fresh = self.index[self.new] < 0
            index = {
                "from": lambda: self.index.clamp(min=0),
                "new": lambda: self.new,
                "read": lambda: self.new[fresh & self.read],
                "made": lambda: self.new[fresh & ~self.read],
            }[what]()
            self._placed[what, device] = to_device(index, device)
        return self._placed[what, device]


def new_axes(changes: Sequence[Change], sizes: Mapping[Key, int]) -> dict[Key, Axis]:
    """Return the new layout of every dimension that the changes touch."""
    members: dict[Key, list[tuple[Change, Slice]]] = defaultdict(list)
    for change in changes:
        for s in change.group.slices:
            members[s.parameter, s.dim].append((change, s))
    # Dimensions along which exactly the same units lie, in the same runs, share their positions and
    # new layout. The positions of a single unit may be shared by dimensions with other runs.
    known: dict[Any, Axis] = {}
    axes: dict[Key, Axis] = {}
    for key, here in members.items():
        alike = tuple((id(change), id(s.positions), s.runs, s.role == "in") for change, s in here)
        if (sizes[key], alike) not in known:
            known[sizes[key], alike] = _axis(sizes[key], here)
        axes[key] = known[sizes[key], alike]
    return axes


def moved_group(group: WidthGroup, change: Change | None, axes: Mapping[Key, Axis]) -> WidthGroup:
    """Return the group as it lies in the new layout of its dimensions."""
    if change is None and not any((s.parameter, s.dim) in axes for s in group.slices):
        return group
    slices = []
    moved: dict[tuple[int, int], Tensor] = {}
    for s in group.slices:
        axis = axes.get((s.parameter, s.dim))
        place = (id(s.positions), id(axis))
        if place not in moved:
            moved[place] = _moved(s.positions, group.name, change, axis)
        slices.append(replace(s, positions=moved[place]))
    return replace(group, width=len(slices[0].positions), slices=tuple(slices))


def _moved(old: Tensor, group: str, change: Change | None, axis: Axis | None) -> Tensor:
    positions = old.numpy()
    if change is not None:
        positions = positions[change.keep.numpy()]
    if axis is not None:
        positions = axis.moved.numpy()[positions]
        if group in axis.added:
            positions = np.concatenate([positions, axis.added[group].numpy()])
    return torch.from_numpy(positions)


def only_shift(groups: Sequence[WidthGroup], wider: Mapping[str, WidthGroup]) -> bool:
    """Return whether one more unit per group only lengthens and shifts regular runs of units.

    If so, the runs keep their order, whichever units are added or removed.

    Args:
        groups: the groups at their own widths.
        wider: group name -> the group with one more unit.
    """
    keys: dict[Key, int] = {}
    runs = []  # key, start, length, start with one more unit
    for group in groups:
        twins = {(s.parameter, s.dim): s for s in wider[group.name].slices}
        for s in group.slices:
            twin = twins[s.parameter, s.dim]
            if not (s.is_regular and twin.is_regular):
                return False
            key = keys.setdefault((s.parameter, s.dim), len(keys))
            first, moved = s.positions[0].tolist(), twin.positions[0].tolist()
            column = 0
            for length in s.runs:
                runs.append((key, first[column], length, moved[column]))
                column += length
    key_, start, length_, moved_ = np.array(sorted(runs)).reshape(-1, 4).T
    before = np.cumsum(length_) - length_
    new_key = np.flatnonzero(np.diff(key_, prepend=-1))
    before -= np.repeat(before[new_key], np.diff([*new_key, len(key_)]))
    return bool((moved_ == start + before).all())


def _axis(size: int, members: Sequence[tuple[Change, Slice]]) -> Axis:
    """Drop the coordinates of removed units and insert those of new units.

    A new unit's coordinates follow those of the group's last unit, run by run. A new channel that
    is flattened from 3 × 3 inserts one run of 9; a new head in fused q, k and v inserts one run
    into each of the three.
    """
    kept = np.ones(size, dtype=bool)
    for change, s in members:
        if len(change.keep) < change.group.width:
            gone = np.ones(change.group.width, dtype=bool)
            gone[change.keep.numpy()] = False
            kept[s.positions.numpy()[gone]] = False
    stay = np.flatnonzero(kept)
    # Old coordinate c has the sort key 2c; coordinates inserted after it have 2c + 1.
    order_keys, origins, reads = [2 * stay], [stay], [np.zeros(0, dtype=bool)]
    inserted: list[tuple[str, list[Any]]] = []
    count = len(stay)
    for change, s in members:
        if not len(change.source):
            continue
        blocks = []
        positions, source = s.positions.numpy(), change.source.numpy()
        start = 0
        for length in s.runs:
            block = positions[:, start : start + length]
            start += length
            origin = np.where(source[:, None] >= 0, block[source], -1)
            order_keys.append(np.full(origin.size, 2 * block[-1, -1] + 1))
            origins.append(origin.ravel())
            reads.append(np.full(origin.size, s.role == "in"))
            blocks.append(np.arange(count, count + origin.size).reshape(origin.shape))
            count += origin.size
        inserted.append((change.group.name, blocks))
    order = np.concatenate(order_keys).argsort(kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(count)
    moved = np.full(size, -1)
    moved[stay] = place[: len(stay)]
    new = place[len(stay) :]
    in_order = new.argsort()
    return Axis(
        index=torch.from_numpy(np.concatenate(origins)[order]),
        new=torch.from_numpy(new[in_order]),
        read=torch.from_numpy(np.concatenate(reads)[in_order]),
        moved=torch.from_numpy(moved),
        added={
            name: torch.from_numpy(np.concatenate([place[b] for b in blocks], axis=1))
            for name, blocks in inserted
        },
    )
