"""The tree of a search space, and the ways to walk through it.

A node is a `Range`, a `Choice`, a mapping of names to nodes, or a fixed value. The dotted name of a
node is its path: `lr.1.initial` is the range "initial" within option 1 of the choice "lr".
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

Point = Mapping[str, Any]
"""A point: dimension name -> a number for a range, or the index of an option for a choice."""


@dataclass(frozen=True)
class Range:
    """The numbers from low to high, both included; only whole numbers if both ends are integers.

    Attributes:
        low: the smallest number.
        high: the largest number.
        log: whether the logarithm is drawn uniformly, instead of the number itself.
    """

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the range contains only whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Choice:
    """One of several options. An option that is a mapping may contain ranges and choices."""

    options: tuple[Any, ...]


Dimension = Range | Choice


def dimensions_of(node: Any, name: str) -> Iterator[tuple[str, Dimension]]:
    """Yield every range and choice below a node, with its dotted name."""
    if isinstance(node, Range | Choice):
        yield name, node
    for key, child in children_of(node):
        yield from dimensions_of(child, f"{name}.{key}" if name else key)


def options_above(
    node: Any, name: str, options: Mapping[str, int] = MappingProxyType({})
) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Yield every dimension, and the options of choices that a point takes if it uses it."""
    if isinstance(node, Range | Choice):
        yield name, options
    for key, child in children_of(node):
        taken = {**options, name: int(key)} if isinstance(node, Choice) else options
        yield from options_above(child, f"{name}.{key}" if name else key, taken)


def size_of(node: Any) -> int | None:
    """Return the number of configurations of a node, or None if there are infinitely many."""
    if isinstance(node, Range):
        return int(node.high) - int(node.low) + 1 if node.whole else None
    sizes = [size_of(child) for _, child in children_of(node)]
    counted = [size for size in sizes if size is not None]
    if len(counted) < len(sizes):
        return None
    return sum(counted) if isinstance(node, Choice) else math.prod(counted)


def points_of(node: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yield the used dimensions of every configuration of a node without real ranges."""
    if isinstance(node, Range):
        for value in range(int(node.low), int(node.high) + 1):
            yield {name: value}
    elif isinstance(node, Choice):
        for index, option in enumerate(node.options):
            for chosen in points_of(option, f"{name}.{index}"):
                yield {name: index, **chosen}
    else:
        inner = [partial(points_of, c, f"{name}.{k}" if name else k) for k, c in children_of(node)]
        yield from _combined(inner)


def _combined(parts: Sequence[Callable[[], Iterator[dict[str, Any]]]]) -> Iterator[dict[str, Any]]:
    """Yield all combinations, without listing those of any part, as `itertools.product` would."""
    if not parts:
        yield {}
        return
    for one in parts[0]():
        for rest in _combined(parts[1:]):
            yield {**one, **rest}


def children_of(node: Any) -> Sequence[tuple[str, Any]]:
    """Return the nodes directly below a node, each with the last part of its name."""
    if isinstance(node, Mapping):
        return list(node.items())
    if isinstance(node, Choice):
        return [(str(i), option) for i, option in enumerate(node.options)]
    return []


def encoded(node: Any, name: str, value: Any) -> dict[str, Any] | None:
    """Return what to draw below a node to get a value, or None if it cannot be got."""
    if isinstance(node, Range):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_inside = is_number and node.low <= value <= node.high
        return {name: value} if is_inside and (not node.whole or value == int(value)) else None
    if isinstance(node, Choice):
        for place, option in enumerate(node.options):
            below = encoded(option, f"{name}.{place}", value)
            if below is not None:
                return {name: place, **below}
        return None
    if not isinstance(node, Mapping):
        return {} if node == value else None
    if not isinstance(value, Mapping) or value.keys() != node.keys():
        return None
    found: dict[str, Any] = {}
    for key, child in node.items():
        below = encoded(child, f"{name}.{key}" if name else key, value[key])
        if below is None:
            return None
        found |= below
    return found


def grid_of(node: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yield every combination of choices within a node of the tree."""
    if not isinstance(node, Choice):
        inner = [grid_of(c, f"{name}.{k}" if name else k) for k, c in children_of(node)]
        for parts in itertools.product(*inner):
            yield {key: value for part in parts for key, value in part.items()}
        return
    for index, option in enumerate(node.options):
        unused = dict.fromkeys(dict(dimensions_of(node, name)), 0)
        for chosen in grid_of(option, f"{name}.{index}"):
            yield {**unused, name: index, **chosen}


def decoded(node: Any, name: str, flat: Point) -> Any:
    """Return the part of a configuration that a point stands for."""
    if isinstance(node, Range):
        return int(flat[name]) if node.whole else float(flat[name])
    if isinstance(node, Choice):
        index = int(flat[name])
        return decoded(node.options[index], f"{name}.{index}", flat)
    if isinstance(node, Mapping):
        return {k: decoded(v, f"{name}.{k}" if name else k, flat) for k, v in node.items()}
    return node
