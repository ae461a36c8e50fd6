"""Search spaces from plain data: lists are choices, {low, high, log} ranges, the rest is fixed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynopt_ray.errors import SpecError, did_you_mean

_RANGE_KEYS = ("low", "high", "log")
Flat = Mapping[str, Any]
"""Dimension name -> value: a number for ranges, an index for choices."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole numbers if both ends are.

    Attributes:
        low: the least.
        high: the greatest.
        log: even in the logarithm.
    """

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Choice:
    """One of some options. An option that is a mapping may hold ranges and choices itself."""

    options: tuple[Any, ...]


Dimension = Range | Choice


@dataclass(frozen=True)
class Space:
    """What a search may choose, as a tree of fixed values, ranges and choices.

    Make one with `parse`. A range or choice within an option of a choice is always drawn and
    used where that option is.

    Attributes:
        tree: name -> `Range`, `Choice`, mapping of these, or a fixed value.
    """

    tree: Mapping[str, Any]

    @staticmethod
    def parse(space: Mapping[str, Any], *, path: str = "space") -> "Space":
        """The space that plain data describe.

        Args:
            space: name -> a list of options, a range {low, high, log}, a mapping of these, or a
                fixed value. Options that are lists themselves are values.
            path: what to call it in messages.

        Raises:
            SpecError: a range without ends, out of order or not of numbers; no options; or
                nothing to choose. Says where.

        Example:
            >>> space = Space.parse({"lr": {"low": 1e-3, "high": 0.1, "log": True}, "rounds": 2})
            >>> space.decode({"lr": 0.01})
            {'lr': 0.01, 'rounds': 2}
        """
        parsed = Space(_parse_mapping(space, path))
        if not parsed.dimensions:
            raise SpecError(
                f"{path}: nothing to choose, every value is fixed; give a list of options or a "
                "range such as {low: 0.1, high: 0.9}"
            )
        return parsed

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """All ranges and choices by dotted name, those within options too."""
        return dict(_dimensions(self.tree, ""))

    def decode(self, flat: Flat) -> dict[str, Any]:
        """The configuration that drawn values stand for.

        Args:
            flat: dimension name -> number, or the index of an option. Dimensions that the chosen
                options do not use may be missing.
        """
        decoded: dict[str, Any] = _decode(self.tree, "", flat)
        return decoded

    def probes(self) -> Iterator[dict[str, Any]]:
        """Few configurations that cover every option and both ends of every range."""
        dimensions = self.dimensions
        sizes = [len(d.options) if isinstance(d, Choice) else 2 for d in dimensions.values()]
        for number in range(max(sizes)):
            yield self.decode(
                {
                    name: min(number, len(d.options) - 1)
                    if isinstance(d, Choice)
                    else (d.low, d.high)[min(number, 1)]
                    for name, d in dimensions.items()
                }
            )


def _parse(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return (
            _parse_range(value, path) if _looks_like_range(value) else _parse_mapping(value, path)
        )
    if isinstance(value, list | tuple):
        if not value:
            raise SpecError(f"{path}: an empty list has no option to choose; give at least one")
        return Choice(tuple(_parse_option(v, f"{path}.{i}") for i, v in enumerate(value)))
    return value


def _parse_mapping(space: Mapping[str, Any], path: str) -> dict[str, Any]:
    return {str(name): _parse(value, f"{path}.{name}") for name, value in space.items()}


def _parse_option(value: Any, path: str) -> Any:
    return _parse(value, path) if isinstance(value, Mapping) else value


def _looks_like_range(value: Mapping[str, Any]) -> bool:
    return "low" in value or "high" in value


def _parse_range(value: Mapping[str, Any], path: str) -> Range:
    for key in value:
        if key not in _RANGE_KEYS:
            raise SpecError(
                f"{path}.{key}: a range has no {key!r}.{did_you_mean(str(key), _RANGE_KEYS)} "
                f"Known: {', '.join(_RANGE_KEYS)}."
            )
    for key in ("low", "high"):
        end = value.get(key)
        if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
            raise SpecError(f"{path}.{key}: must be a finite number, not {end!r}")
    low, high, log = value["low"], value["high"], value.get("log", False)
    if not isinstance(log, bool):
        raise SpecError(f"{path}.log: must be true or false, not {log!r}")
    if not low < high:
        raise SpecError(f"{path}: low is {low} and high {high}; low must be less than high")
    if log and low <= 0:
        raise SpecError(f"{path}: low is {low}; a logarithmic range must begin above 0")
    return Range(low, high, log)


def _dimensions(node: Any, name: str) -> Iterator[tuple[str, Dimension]]:
    if isinstance(node, Range | Choice):
        yield name, node
    for key, child in _children(node):
        yield from _dimensions(child, f"{name}.{key}" if name else key)


def _children(node: Any) -> Sequence[tuple[str, Any]]:
    if isinstance(node, Mapping):
        return list(node.items())
    if isinstance(node, Choice):
        return [(str(i), option) for i, option in enumerate(node.options)]
    return []


def _decode(node: Any, name: str, flat: Flat) -> Any:
    if isinstance(node, Range):
        return int(flat[name]) if node.whole else float(flat[name])
    if isinstance(node, Choice):
        index = int(flat[name])
        return _decode(node.options[index], f"{name}.{index}", flat)
    if isinstance(node, Mapping):
        return {k: _decode(v, f"{name}.{k}" if name else k, flat) for k, v in node.items()}
    return node
