"""Widths as the target of `prune` and `grow`: check them, and interpolate towards them."""

import math
from collections.abc import Mapping
from numbers import Integral

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Graph, Grow, WidthGroup, check_plan

Widths = Mapping[str, int]
"""Group name -> number of units."""

# Fractions are often meant as quotients of small integers. A fraction of 0.29 removes 29 of 100
# units, although 100 * 0.29 < 29 in floating point.
ROUNDING = 1e-9


def share_of(number: int, fraction: float, *, step: int = 1) -> int:
    """Return the largest multiple of `step` that is at most `fraction` of `number`."""
    return math.floor(number * (fraction + ROUNDING) / step) * step


def widths_at(graph: Graph, start: Widths, wanted: Widths, share: float) -> dict[str, int]:
    """Return the widths a fraction of the way from `start` to smaller `wanted`, rounded up."""
    return {
        name: start[name] - share_of(start[name] - width, share, step=graph[name].step)
        for name, width in wanted.items()
    }


def wanted_widths(graph: Graph, target: Widths, *, min_widths: Widths) -> dict[str, int]:
    """Check the target widths of `prune` and return them by group name.

    Args:
        graph: the traced network.
        target: name of a group, or of any of its producers -> width to keep.
        min_widths: group name -> fewest units to keep.

    Raises:
        EditError: the target names no group or makes none smaller, a width is out of range or not
            a whole number of the group's steps below its present width, or a width contradicts
            another entry or `min_widths`.
        UnknownNameError: a name is not a group.
    """
    least = {graph[name].name: width for name, width in min_widths.items()}
    for name, width in target.items():
        group = graph[name]
        _check_width(name, group, width)
        if width < least.get(group.name, 0):
            raise EditError(
                f"prune: the target keeps {width} units of {name!r}, but min_widths says at least "
                f"{least[group.name]}; change one of them"
            )
    wanted = by_group(graph, target, caller="prune", verb="keep")
    if all(width == graph[name].width for name, width in wanted.items()):
        raise EditError(
            f"prune: the target {dict(target)!r} removes nothing; give at least one group fewer "
            f"units than it has: {graph.widths}"
        )
    return wanted


def larger_widths(graph: Graph, target: Widths) -> dict[str, int]:
    """Check the target widths of `grow` and return them by group name.

    Raises:
        EditError: the target names no group, a width is not a whole number above the present
            width, a group cannot reach its width by exact growth, or two entries give one group
            different widths.
        UnknownNameError: a name is not a group.
    """
    if not target:
        raise EditError('grow: the target names no group; write e.g. {"0": 64}')
    for name, width in target.items():
        group = graph[name]
        if not _is_whole(width) or width <= group.width:
            raise EditError(
                f"grow: {name!r} has {group.width} units and cannot grow to {width!r}; give a "
                "larger whole number, or use prune to make the group smaller"
            )
    wanted = by_group(graph, target, caller="grow", verb="have")
    check_plan(graph, [Grow(name, width - graph[name].width) for name, width in wanted.items()])
    return wanted


def by_group(graph: Graph, target: Widths, *, caller: str, verb: str) -> dict[str, int]:
    """Return widths by group name, given widths by the names of any of the groups' producers.

    Raises:
        EditError: two entries give one group different widths.
    """
    wanted: dict[str, int] = {}
    for name, width in target.items():
        group = graph[name]
        if wanted.setdefault(group.name, int(width)) != width:
            raise EditError(
                f"{caller}: {name!r} is to {verb} {width} units, but it is in one width group with "
                f"{group.name!r}, which is to {verb} {wanted[group.name]} by another entry; name "
                "the group once"
            )
    return wanted


def _is_whole(width: object) -> bool:
    return isinstance(width, Integral) and not isinstance(width, bool)


def _check_width(name: str, group: WidthGroup, width: int) -> None:
    if not (_is_whole(width) and group.min_width <= width <= group.width):
        raise EditError(
            f"prune: {name!r} has {group.width} units and cannot keep {width!r}; give a whole "
            f"number from {group.min_width} to {group.width}"
        )
    if (group.width - width) % group.step:
        raise EditError(
            f"prune: {name!r} has {group.width} units and cannot keep {width}, because it shrinks "
            f"in steps of {group.step} units"
        )
