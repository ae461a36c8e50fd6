"""Group the units of a network into width groups, from the record of a trace.

The trace gave an id to every coordinate of every parameter dimension and tied ids that must be
added or removed together. Grouping takes three steps:

1. Units are the connected components of the graph of ties. Removing a component removes its
   coordinates from every tensor, so all sizes that must agree still agree. Some ties depend on
   the components found so far (views that must stay rectangular, attributes that count units in
   several places, sizes computed from other sizes), so this step repeats until no tie is added.
2. Components that lie along the same parameter dimensions, with the same number of coordinates in
   each, are interchangeable: whichever is removed, the shapes that remain are the same. They are
   the units of one candidate group, called a bundle here. They are found by a signature: each
   dimension has a random number, and a component's signature is the sum of these numbers over its
   coordinates. Components are kept apart if they are pinned, not reached, or in a slice that an
   operation may treat differently (`Record.parted`).
3. A candidate that is pinned, or that no operation reads (see `reach`), is reported as fixed with
   the reason. Every other candidate becomes a `WidthGroup`, named after its first producer.

Networks have many more units than groups, so all steps are array operations without a loop over
units.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from dynopt_ray.structure.units.groups import Slice, WidthGroup, contiguous_runs, producer_name
from dynopt_ray.structure.units.labels import ID, IdArray
from dynopt_ray.structure.units.reach import read_units
from dynopt_ray.structure.units.record import Link, Place, Record

Key = tuple[str, int]
"""The name of a parameter or buffer, and one of its dimensions."""

IS_OUTPUT = "it is the network's output"
_NOT_REACHED = "not reached by this example"
_ROLE_ORDER = {"out": 0, "scale": 1, "in": 2}


@dataclass(frozen=True, eq=False)
class Grouping:
    """The width groups that follow from one trace.

    Attributes:
        groups: the groups that can be resized, in forward order.
        fixed: name -> reason, for everything that cannot be resized.
        group_of: for every id, the index of its group in `groups`, or -1.
        unit_of: for every id, the number of its unit within its group.
    """

    groups: tuple[WidthGroup, ...]
    fixed: dict[str, str]
    group_of: IdArray
    unit_of: IdArray

    def only(self, groups: Sequence[WidthGroup]) -> "Grouping":
        """Return a grouping with only these groups; the ids of the others belong to no group."""
        index = {group.name: i for i, group in enumerate(groups)}
        renumber = np.array([*(index.get(g.name, -1) for g in self.groups), -1], dtype=ID)
        return replace(self, groups=tuple(groups), group_of=renumber[self.group_of])

    def extents(self, ids: IdArray, group: int) -> tuple[int, ...]:
        """Return in how many rows along each axis the first unit of a group lies."""
        here = (self.group_of[ids] == group) & (self.unit_of[ids] == 0)
        return tuple(len(np.unique(places)) for places in here.nonzero())


def group_units(record: Record) -> Grouping:
    """Merge tied ids into units, and units that lie along the same dimensions into width groups."""
    component = _merged(record)
    num_components = int(component.max(initial=-1)) + 1
    reasons = _pinned(record, component, num_components)

    keys = sorted(
        (key for key in record.parameter_ids if key not in record.hidden),
        key=lambda key: _priority(record, key),
    )
    entries = _Entries.build(record, keys, component)
    missed = ~read_units(record.passages, component, num_components)
    record.passages.clear()
    pinned = np.fromiter((reason is not None for reason in reasons), bool, num_components)
    missed &= ~pinned
    for unit in np.unique(entries.component[missed[entries.component]]).tolist():
        reasons[unit] = _NOT_REACHED
    signature = _signatures(entries, num_components)
    for number, ids in enumerate(record.parted):
        np.add.at(signature, component[ids], _token(number))
    for number, units in enumerate((pinned, missed), start=len(record.parted)):
        signature[units] += _token(number)
    leader = np.full(num_components, len(entries.key), dtype=ID)
    np.minimum.at(leader, entries.component, np.arange(len(entries.key), dtype=ID))

    present = np.flatnonzero(leader < len(entries.key))
    present = present[np.argsort(leader[present], kind="stable")]
    _, first, bundle = np.unique(signature[present], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # bundles in order of their first unit
    bundle_of = np.full(num_components, -1, dtype=ID)
    bundle_of[present] = rank[bundle]
    unit_of = _counted_within(bundle_of, present, num_components)

    mixed, counted = _mixed(record, component, bundle_of)
    least_two = bundle_of[component[_joined(record.never_one)]]
    groups: list[WidthGroup] = []
    fixed: dict[str, str] = {}
    group_of_bundle = np.full(len(first) + 1, -1, dtype=ID)
    for index, members in enumerate(entries.slices(bundle_of, unit_of)):
        (name, dim), positions, _ = members[0]
        unit = component[record.parameter_ids[name, dim][int(positions[0, 0])]]
        reason = reasons[unit]
        if name not in record.first_use:
            reason = reason or _NOT_REACHED
        if reason is not None:
            for (parameter, d), _, _ in members:
                _note_fixed(fixed, _fixed_name(record, parameter, d), reason)
            continue
        group_of_bundle[index] = len(groups)
        cause = mixed.get(index) or (counted.get(index) if len(positions) == 1 else None)
        fewest = 2 if index in least_two else 1
        groups.append(_width_group(record, members, cause=cause or "", fewest=fewest))
    groups = _uniquely_named(groups)
    group_of = group_of_bundle[bundle_of[component]] if num_components else component
    return Grouping(tuple(groups), fixed, group_of, unit_of[component])


def _mixed(
    record: Record, component: IdArray, bundle_of: IdArray
) -> tuple[dict[int, str], dict[int, str]]:
    """Return the bundles on whose units' number the output depends, of two kinds, with reasons.

    The first kind meets others in an operation. The second meets none: the operation depends on
    the number of its own coordinates (of one head). It matters only if it is the only unit of its
    group, because then coordinates of other units would meet it.
    """
    together: dict[int, str] = {}
    alone: dict[int, str] = {}
    for ids, cause in record.mixed:
        rows = component[ids] if ids.ndim > 1 else component[ids][None]
        differ = (rows != rows[:, :1]).any(axis=1)
        for found, units in ((together, rows[differ].ravel()), (alone, rows[~differ, 0])):
            for bundle in np.unique(bundle_of[units]).tolist():
                found.setdefault(bundle, cause)
    return together, alone


def _joined(arrays: Sequence[IdArray]) -> IdArray:
    return np.concatenate([np.zeros(0, dtype=ID), *arrays])


def _note_fixed(fixed: dict[str, str], name: str, reason: str) -> None:
    """Note why something is fixed. If some of its units were not reached, that is the reason."""
    if reason == _NOT_REACHED and fixed.get(name) != IS_OUTPUT:
        fixed[name] = reason
    else:
        fixed.setdefault(name, reason)


def _merged(record: Record) -> IdArray:
    """Return the component of every id, after adding the ties that depend on components."""
    component = _components(record.num_ids, record.ties)
    while True:
        ties = [tie for ids in record.factors for tie in _rectangular(component, ids)]
        ties += _counted_alike(component, record.links)
        for ids, others in record.counted:
            if not np.isin(component[ids], component[others]).all():
                ties.append((ids, others))
        if not ties:
            record.ties.clear()  # most of a record's memory, and not needed again
            return component
        record.ties.extend(ties)
        component = _components(record.num_ids, record.ties)


def _components(num_ids: int, ties: Iterable[tuple[IdArray, IdArray]]) -> IdArray:
    # Imported here because scipy loads slowly and `import dynopt_ray` should not wait for it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [np.broadcast_arrays(one, other) for one, other in ties]
    if not pairs:
        return np.arange(num_ids, dtype=ID)
    rows = np.concatenate([one.ravel() for one, _ in pairs])
    columns = np.concatenate([other.ravel() for _, other in pairs])
    weights = np.ones(len(rows), dtype=np.int8)
    edges = coo_array((weights, (rows, columns)), shape=(num_ids, num_ids))
    _, component = connected_components(edges, directed=False)
    return np.asarray(component, dtype=ID)


def _rectangular(component: IdArray, ids: IdArray) -> list[tuple[IdArray, IdArray]]:
    """Return ties after which the units of a multi-dimensional view vary along one dimension only.

    Other operations may have ensured that already: the product of queries and keys ties the
    coordinates of each head. If not (channel shuffle, chunks), the units are tied across all
    dimensions except the last.
    """
    values = component[ids]
    for axis in range(ids.ndim):
        others = tuple(a for a in range(ids.ndim) if a != axis)
        reference = values[
            tuple(slice(0, 1) if a in others else slice(None) for a in range(ids.ndim))
        ]
        if bool((values == reference).all()):
            return []
    return [(ids, ids[(*(slice(0, 1),) * (ids.ndim - 1), slice(None))])]


def _counted_alike(component: IdArray, links: Sequence[Link]) -> list[tuple[IdArray, IdArray]]:
    """Return ties between units that one attribute counts in several places (`num_heads`, say).

    A link to the coordinates of a single unit (of one head) is ignored, as it counts no units.
    """
    by_place: dict[Place, list[Link]] = defaultdict(list)
    for link in links:
        by_place[link.place].append(link)
    ties = []
    for alike in by_place.values():
        if len(alike) > 1:
            counting = [ids for link in alike if np.ptp(component[ids := link.ids])]
            ties += [
                (counting[0], ids)
                for ids in counting[1:]
                if not np.array_equal(component[counting[0]], component[ids])
            ]
    return ties


def _pinned(record: Record, component: IdArray, num_components: int) -> list[str | None]:
    reasons: list[str | None] = [None] * num_components
    for ids, reason in record.pinned:
        for unit in np.unique(component[ids]).tolist():
            reasons[unit] = reasons[unit] or reason
    return reasons


def _priority(record: Record, key: Key) -> tuple[int, int, int]:
    """Sort producers first, in forward order: the first names the group and numbers its units."""
    name, dim = key
    use = record.first_use.get(name, len(record.first_use))
    return (_ROLE_ORDER[record.roles.get(key, "out")], use, dim)


Member = tuple[Key, torch.Tensor, tuple[int, ...]]
"""A dimension, the positions of a group's units along it, and the runs that they form."""


@dataclass(frozen=True, eq=False)
class _Entries:
    """A table with one row per coordinate of the parameter dimensions.

    Dimensions with the same components at all coordinates (a weight's rows, its bias, the
    BatchNorm after it) share one set of rows, and their slices share one tensor of positions.

    Attributes:
        keys: all parameter dimensions.
        alike: for each set of rows, the indices into `keys` of the dimensions that share it.
        key: for each row, the index of its set in `alike`.
        component: for each row, the component of the coordinate.
        position: for each row, the coordinate.
    """

    keys: list[Key]
    alike: list[list[int]]
    key: IdArray
    component: IdArray
    position: IdArray

    @classmethod
    def build(cls, record: Record, keys: list[Key], component: IdArray) -> "_Entries":
        alike: dict[bytes, list[int]] = {}
        rows: list[IdArray] = [np.zeros(0, ID)]
        for index, key in enumerate(keys):
            here = component[record.parameter_ids[key]]
            others = alike.setdefault(here.tobytes(), [])
            others.append(index)
            if len(others) == 1:
                rows.append(here)
        sizes = [len(here) for here in rows]
        numbers = np.arange(-1, len(alike), dtype=ID)
        positions = [np.arange(size, dtype=ID) for size in sizes]
        return cls(
            keys,
            [*alike.values()],
            np.repeat(numbers, sizes),
            np.concatenate(rows),
            np.concatenate(positions),
        )

    def slices(self, bundle_of: IdArray, unit_of: IdArray) -> Iterable[list[Member]]:
        """Yield the dimensions along which the units of each bundle lie, in the order of `keys`."""
        bundle, unit = bundle_of[self.component], unit_of[self.component]
        order = np.lexsort((unit, self.key, bundle))  # stable, so positions stay in order
        bundle, key, unit = bundle[order], self.key[order], unit[order]
        position = self.position[order]
        starts = np.flatnonzero(
            (np.diff(bundle, prepend=-1) != 0) | (np.diff(key, prepend=-1) != 0)
        )
        members: dict[int, Member] = {}
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            if members and bundle[start] != bundle[start - 1]:
                yield [members[index] for index in sorted(members)]
                members = {}
            array = position[start:stop].reshape(int(unit[stop - 1]) + 1, -1)
            positions, runs = torch.from_numpy(array.astype(np.int64)), contiguous_runs(array[-1])
            for index in self.alike[key[start]]:
                members[index] = (self.keys[index], positions, runs)
        if members:
            yield [members[index] for index in sorted(members)]


def _signatures(entries: _Entries, num_components: int) -> npt.NDArray[np.uint64]:
    """Return a number per component: equal if they lie along the same dimensions, equally often."""
    tokens = np.random.default_rng(0).integers(2**63, size=len(entries.alike), dtype=np.uint64)
    signature = np.zeros(num_components, dtype=np.uint64)
    np.add.at(signature, entries.component, tokens[entries.key])
    return signature


def _token(number: int) -> np.uint64:
    """Return a random number that stands for one entry of `Record.parted`."""
    token: np.uint64 = np.random.default_rng(1 + number).integers(2**63, dtype=np.uint64)
    return token


def _counted_within(bundle_of: IdArray, present: IdArray, num_components: int) -> IdArray:
    """Return the number of each component within its bundle, in the order of `present`."""
    unit_of = np.full(num_components, -1, dtype=ID)
    order = np.argsort(bundle_of[present], kind="stable")
    bundles = bundle_of[present][order]
    starts = np.flatnonzero(np.diff(bundles, prepend=-1) != 0)
    counts = np.diff([*starts, len(order)])
    unit_of[present[order]] = np.arange(len(order)) - np.repeat(starts, counts)
    return unit_of


def _width_group(
    record: Record, members: Sequence[Member], *, cause: str, fewest: int
) -> WidthGroup:
    slices = [
        Slice(name, dim, record.roles.get((name, dim), "out"), positions, runs)
        for (name, dim), positions, runs in members
    ]
    producers = dict.fromkeys(producer_name(s.parameter) for s in slices if s.role == "out")
    name = next(iter(producers), producer_name(slices[0].parameter))
    return WidthGroup(
        name=name,
        width=len(slices[0].positions),
        exact_growth=not cause,
        slices=tuple(slices),
        producers=tuple(producers) or (name,),
        min_width=fewest,
        why_inexact=cause,
    )


def _uniquely_named(groups: Iterable[WidthGroup]) -> list[WidthGroup]:
    """Rename groups that share a name m (parts of a fused layer) to m, m#2, m#3."""
    seen: Counter[str] = Counter()
    named = []
    for group in groups:
        seen[group.name] += 1
        count = seen[group.name]
        named.append(group if count == 1 else replace(group, name=f"{group.name}#{count}"))
    return named


def _fixed_name(record: Record, parameter: str, dim: int) -> str:
    """Return `parameter[dim]` for a dimension that reads units, else the name of the producer."""
    if record.roles.get((parameter, dim), "out") == "in":
        return f"{parameter}[{dim}]"
    return producer_name(parameter)
