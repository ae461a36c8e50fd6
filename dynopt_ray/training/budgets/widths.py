"""Widths as the target of `prune` and `grow`: checked, and approached by shares."""

import math
from collections.abc import Mapping
from numbers import Integral

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Graph, Grow, WidthGroup, check_plan

Widths = Mapping[str, int]
"""Group name -> number of units."""

# Shares are quotients of small integers: 7 of 10 units are a fraction of 0.7, rounding or not.
ROUNDING = 1e-9


def share_of(number: int, fraction: float, *, step: int = 1) -> int:
    """The most that can go, in multiples of a step, without exceeding a fraction."""
    return math.floor(number * (fraction + ROUNDING) / step) * step


def widths_at(graph: Graph, start: Widths, wanted: Widths, share: float) -> dict[str, int]:
    """The widths after a share of the way from the start to those wanted, rounded up."""
    return {
        name: start[name] - share_of(start[name] - width, share, step=graph[name].step)
        for name, width in wanted.items()
    }


def wanted_widths(graph: Graph, target: Widths, *, min_widths: Widths) -> dict[str, int]:
    """Group name -> the width that it shall keep, once it is known that it can.

    Args:
        graph: the traced network.
        target: the same by any of a group's producers.
        min_widths: group name -> fewest units to keep.

    Raises:
        EditError: no group is named or none gets smaller, a width is out of range or off the
            group's steps, or another entry or a least width contradicts it.
        UnknownNameError: something that is no group.
    """
    least = {graph[name].name: width for name, width in min_widths.items()}
    for name, width in target.items():
        group = graph[name]
        _check_width(name, group, width)
        if width < least.get(group.name, 0):
            raise EditError(
                f"prune: {name!r} shall keep {width} units, but min_widths says at least "
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
    """Group name -> the width it shall have, once it is known that each group can grow to it.

    Raises:
        EditError: no group, a width that is no larger whole number or cannot be reached exactly,
            or two for one group.
        UnknownNameError: something that is no group.
    """
    if not target:
        raise EditError('grow: the target names no group; write e.g. {"0": 64}')
    for name, width in target.items():
        group = graph[name]
        if not _is_whole(width) or width <= group.width:
            raise EditError(
                f"grow: {name!r} has {group.width} units and shall have {width!r}; give a larger "
                "whole number, or use prune to make it smaller"
            )
    wanted = by_group(graph, target, caller="grow", verb="have")
    check_plan(graph, [Grow(name, width - graph[name].width) for name, width in wanted.items()])
    return wanted


def by_group(graph: Graph, target: Widths, *, caller: str, verb: str) -> dict[str, int]:
    """Widths by the names of groups, from those by any of their producers.

    Raises:
        EditError: two entries give one group different widths.
    """
    wanted: dict[str, int] = {}
    for name, width in target.items():
        group = graph[name]
        if wanted.setdefault(group.name, int(width)) != width:
            raise EditError(
                f"{caller}: {name!r} shall {verb} {width} units, but it is of one width with "
                f"{group.name!r}, which shall {verb} {wanted[group.name]} by another entry; name "
                "the group once"
            )
    return wanted


def _is_whole(width: object) -> bool:
    return isinstance(width, Integral) and not isinstance(width, bool)


def _check_width(name: str, group: WidthGroup, width: int) -> None:
    if not (_is_whole(width) and group.min_width <= width <= group.width):
        raise EditError(
            f"prune: {name!r} has {group.width} units and shall keep {width!r}; give a whole "
            f"number from {group.min_width} to {group.width}"
        )
    if (group.width - width) % group.step:
        raise EditError(
            f"prune: {name!r} has {group.width} units and shall keep {width}, but it shrinks in "
            f"steps of {group.step}"
        )
