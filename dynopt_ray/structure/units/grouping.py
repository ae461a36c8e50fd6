"""From the ties of one traced pass to width groups: array operations, never a loop over units."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from dynopt_ray.structure.units.groups import Slice, WidthGroup, contiguous_runs, producer_name
from dynopt_ray.structure.units.labels import ID, IdArray
from dynopt_ray.structure.units.record import Link, Place, Record

Key = tuple[str, int]
"""A parameter's or buffer's name and one of its dimensions."""

_UNUSED = "the forward pass does not use it"
_ROLE_ORDER = {"out": 0, "scale": 1, "in": 2}


@dataclass(frozen=True, eq=False)
class Grouping:
    """The outcome of one trace.

    Attributes:
        groups: what can be resized, in forward order.
        fixed: what cannot: name -> reason.
        group_of: for every unit id, the index of its group in `groups`, or -1.
        unit_of: for every unit id, the number of its unit within its group.
    """

    groups: tuple[WidthGroup, ...]
    fixed: dict[str, str]
    group_of: IdArray
    unit_of: IdArray

    def only(self, groups: Sequence[WidthGroup]) -> "Grouping":
        """The same outcome with some of the groups left; the others count as fixed."""
        index = {group.name: i for i, group in enumerate(groups)}
        renumber = np.array([*(index.get(g.name, -1) for g in self.groups), -1], dtype=ID)
        return replace(self, groups=tuple(groups), group_of=renumber[self.group_of])


def group_units(record: Record) -> Grouping:
    """Merge tied units; those that lie in the same slices form a width group."""
    component = _merged(record)
    num_components = int(component.max(initial=-1)) + 1
    reasons = _pinned(record, component, num_components)
    least_two = np.zeros(num_components, dtype=bool)
    for ids in record.never_one:
        least_two[component[ids]] = True
    mixed = np.zeros(num_components, dtype=bool)
    for ids in record.mixed:
        units = component[ids]
        if ids.ndim > 1 and ids.shape[1] > 1:
            units = units[(units != units[:, :1]).any(axis=1)]
        mixed[units] = True

    keys = sorted(
        (key for key in record.parameter_ids if key not in record.hidden),
        key=lambda key: _priority(record, key),
    )
    entries = _Entries.build(record, keys, component)
    signature = _signatures(entries, reasons, num_components)
    for number, ids in enumerate(record.parted):
        np.add.at(signature, component[ids], _token(number))
    leader = np.full(num_components, len(entries.key), dtype=ID)
    np.minimum.at(leader, entries.component, np.arange(len(entries.key), dtype=ID))

    present = np.flatnonzero(leader < len(entries.key))
    present = present[np.argsort(leader[present], kind="stable")]
    _, first, bundle = np.unique(signature[present], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # bundles in order of their first unit
    bundle_of = np.full(num_components, -1, dtype=ID)
    bundle_of[present] = rank[bundle]
    unit_of = _counted_within(bundle_of, present, num_components)

    groups: list[WidthGroup] = []
    fixed: dict[str, str] = {}
    group_of_bundle = np.full(len(first) + 1, -1, dtype=ID)
    for index, members in enumerate(entries.slices(bundle_of, unit_of)):
        (name, dim), positions, _ = members[0]
        unit = component[record.parameter_ids[name, dim][int(positions[0, 0])]]
        reason = reasons[unit]
        if name not in record.first_use:
            reason = reason or _UNUSED
        if reason is not None:
            for (parameter, d), _, _ in members:
                fixed.setdefault(_fixed_name(record, parameter, d), reason)
            continue
        group_of_bundle[index] = len(groups)
        fewest = 2 if least_two[unit] else 1
        groups.append(_width_group(record, members, exact=not mixed[unit], fewest=fewest))
    groups = _uniquely_named(groups)
    group_of = group_of_bundle[bundle_of[component]] if num_components else component
    return Grouping(tuple(groups), fixed, group_of, unit_of[component])


def _merged(record: Record) -> IdArray:
    """The connected component of every id; views to several dimensions are made rectangular."""
    component = _components(record.num_ids, record.ties)
    while True:
        ties = [tie for ids in record.factors for tie in _rectangular(component, ids)]
        ties += _counted_alike(component, record.links)
        for ids, others in record.counted:
            if not np.isin(component[ids], component[others]).all():
                ties.append((ids, others))
        if not ties:
            record.ties.clear()  # most of a record; nobody asks again
            return component
        record.ties.extend(ties)
        component = _components(record.num_ids, record.ties)


def _components(num_ids: int, ties: Iterable[tuple[IdArray, IdArray]]) -> IdArray:
    # scipy loads slowly and `import dynopt_ray` should not wait for it.
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
    """Ties that make the units of a view to several dimensions vary along one of them only.

    Where nothing else decided (heads are tied within by the product over their coordinates), the
    last dimension counts units and the others repeat them: channel shuffle, chunks.
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
    """Ties of units that one attribute counts in several places (heads of shared settings).

    An attribute that counts the coordinates of one unit (of a head) says nothing about units.
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
    """Producers first, in forward order: the first one names the group and numbers its units."""
    name, dim = key
    use = record.first_use.get(name, len(record.first_use))
    return (_ROLE_ORDER[record.roles.get(key, "out")], use, dim)


Member = tuple[Key, torch.Tensor, tuple[int, ...]]
"""A dimension, where the units of a group lie along it, and in which runs."""


@dataclass(frozen=True, eq=False)
class _Entries:
    """One row per coordinate of every parameter dimension: its key, component and position.

    Dimensions with the same components throughout (a weight's rows, its bias, what normalises
    them) stand in one set of rows, and their slices share their positions.
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
        """For each bundle of units, the dimensions that they lie along, in order."""
        bundle, unit = bundle_of[self.component], unit_of[self.component]
        order = np.lexsort((unit, self.key, bundle))  # stable: positions stay in order
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


def _signatures(
    entries: _Entries, reasons: list[str | None], num_components: int
) -> npt.NDArray[np.uint64]:
    """A number per component that is equal for components in the same slices, equally often."""
    tokens = np.random.default_rng(0).integers(2**63, size=len(entries.alike), dtype=np.uint64)
    signature = np.zeros(num_components, dtype=np.uint64)
    np.add.at(signature, entries.component, tokens[entries.key])
    pinned = np.fromiter((reason is not None for reason in reasons), bool, num_components)
    signature[pinned] += np.uint64(1)
    return signature


def _token(number: int) -> np.uint64:
    """A random number for each part that units stand in."""
    token: np.uint64 = np.random.default_rng(1 + number).integers(2**63, dtype=np.uint64)
    return token


def _counted_within(bundle_of: IdArray, present: IdArray, num_components: int) -> IdArray:
    """The number of each component within its bundle, in the order of `present`."""
    unit_of = np.full(num_components, -1, dtype=ID)
    order = np.argsort(bundle_of[present], kind="stable")
    bundles = bundle_of[present][order]
    starts = np.flatnonzero(np.diff(bundles, prepend=-1) != 0)
    counts = np.diff([*starts, len(order)])
    unit_of[present[order]] = np.arange(len(order)) - np.repeat(starts, counts)
    return unit_of


def _width_group(
    record: Record, members: Sequence[Member], *, exact: bool, fewest: int
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
        exact_growth=exact,
        slices=tuple(slices),
        producers=tuple(producers) or (name,),
        min_width=fewest,
    )


def _uniquely_named(groups: Iterable[WidthGroup]) -> list[WidthGroup]:
    """Several groups that one module makes (parts of a fused layer) are called m, m#2, m#3."""
    seen: Counter[str] = Counter()
    named = []
    for group in groups:
        seen[group.name] += 1
        count = seen[group.name]
        named.append(group if count == 1 else replace(group, name=f"{group.name}#{count}"))
    return named


def _fixed_name(record: Record, parameter: str, dim: int) -> str:
    """Like a group's name for what is produced; `parameter[dim]` for what is read."""
    if record.roles.get((parameter, dim), "out") == "in":
        return f"{parameter}[{dim}]"
    return producer_name(parameter)
