"""Search spaces from plain data: lists are choices, {low, high, log} are ranges, the rest is fixed.

Users write a space as a tree, in which an option of a choice may contain ranges and choices of its
own. Searchers, however, draw from a fixed list of named dimensions. This file translates between
the two. Every range and choice of the tree becomes one dimension, whose dotted name is its path in
the tree, such as `lr.1.initial`: the range "initial" within option 1 of the choice "lr". A drawn
value is a number for a range and the index of an option for a choice.

`decode` walks through the tree, follows the drawn option at every choice, and ignores dimensions
within the other options. So each drawn point stands for exactly one configuration, and a searcher
needs to know nothing of the nesting. Points that differ only in ignored dimensions stand for the
same configuration. `grid` therefore keeps ignored dimensions at their first option, and so gives
each configuration once.

A list of spaces is their union. It is treated as a choice named "member" at the root of the tree.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynopt_ray.cluster.searching.tree import (
    Choice,
    Dimension,
    Point,
    Range,
    decoded,
    dimensions_of,
    encoded,
    grid_of,
    options_above,
    points_of,
    size_of,
)
from dynopt_ray.errors import SpecError, did_you_mean

__all__ = ["Choice", "Dimension", "Point", "Range", "Space", "SpaceConfig"]

_RANGE_KEYS = ("low", "high", "log")
SpaceConfig = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A space as plain data; see `Space.parse`."""


@dataclass(frozen=True)
class Space:
    """The configurations that a search may try, as a tree of fixed values, ranges and choices.

    Make one with `parse`. A range or choice within an option is drawn in every trial, but it is
    used only if that option is chosen.

    Attributes:
        tree: name -> `Range`, `Choice`, a mapping of these, or a fixed value. A union is a
            `Choice` of such mappings.
        plain: the plain data from which it was parsed.
    """

    tree: Mapping[str, Any] | Choice
    plain: SpaceConfig = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def parse(space: "SpaceConfig | Space", *, path: str = "space") -> "Space":
        """Return the space that plain data describe.

        Args:
            space: name -> a list of options, a range {low, high, log}, a mapping of these, or a
                fixed value. An option that is itself a list is a fixed value. A list of such
                mappings is the union of their spaces. A `Space` is returned unchanged.
            path: name of the space in error messages.

        Raises:
            SpecError: a range has a missing or unknown key, an end that is not a finite number,
                or ends in the wrong order; a list has no options; every value is fixed; the data
                are neither a mapping nor a list of mappings; a name contains a slash; or two
                dimensions have the same dotted name. The message says where.

        Example:
            >>> space = Space.parse({"lr": {"low": 1e-3, "high": 0.1, "log": True}, "rounds": 2})
            >>> space.decode({"lr": 0.01})
            {'lr': 0.01, 'rounds': 2}
        """
        if isinstance(space, Space):
            return space
        parsed = Space(_parse_union(space, path), space)
        if not parsed.dimensions:
            raise SpecError(
                f"{path}: nothing to choose, every value is fixed; give a list of options or a "
                "range such as {low: 0.1, high: 0.9}"
            )
        _check_names(parsed, path)
        return parsed

    @property
    def size(self) -> int | None:
        """The number of configurations, or None if there are infinitely many.

        Options count separately even if they are equal.
        """
        return size_of(self.tree)

    def points(self) -> Iterator[Point]:
        """Yield a point for every configuration, with the used dimensions only.

        Raises:
            SpecError: there are infinitely many.
        """
        if self.size is None:
            raise SpecError("space: a range of real numbers has infinitely many configurations")
        return points_of(self.tree, self._root)

    def used(self, flat: Point) -> dict[str, Any]:
        """Return a point without the dimensions within options that it does not take.

        Two points stand for the same configuration if these are equal.
        """
        above = dict(options_above(self.tree, self._root))
        return {
            name: flat[name]
            for name in above
            if all(int(flat[choice]) == option for choice, option in above[name].items())
        }

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """All ranges and choices by dotted name, including those within options."""
        return dict(dimensions_of(self.tree, self._root))

    @property
    def _root(self) -> str:
        return "member" if isinstance(self.tree, Choice) else ""

    def decode(self, flat: Point) -> dict[str, Any]:
        """Return the configuration that a point stands for.

        Args:
            flat: dimension name -> a number, or the index of an option. Dimensions within options
                that are not chosen may be missing.
        """
        config: dict[str, Any] = decoded(self.tree, self._root, flat)
        return config

    def point_of(self, config: Mapping[str, Any]) -> Point | None:
        """Return a point that decodes to a configuration; None if the space does not contain it.

        Dimensions within options that are not chosen have their first or lowest value.
        """
        used = encoded(self.tree, self._root, config)
        if used is None:
            return None
        return {name: _values(dimension)[0] for name, dimension in self.dimensions.items()} | used

    def grid(self) -> list[Point]:
        """Return one point for every configuration; the last dimensions change fastest.

        Choices within options that are not chosen keep their first option, so that no
        configuration occurs twice.

        Raises:
            SpecError: the space has a range, whose values cannot be listed.
        """
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, Range):
                raise SpecError(
                    f"space.{name}: a grid cannot try all values of a range; list the values to "
                    "try, or use another searcher"
                )
        return list(grid_of(self.tree, self._root))

    def probes(self) -> Iterator[dict[str, Any]]:
        """Yield a few configurations that cover every option and both ends of every range."""
        dimensions = self.dimensions
        first = {name: _values(dimension)[0] for name, dimension in dimensions.items()}
        above = dict(options_above(self.tree, self._root))
        for name, dimension in dimensions.items():
            leading = {**first, **above[name]}
            for value in _values(dimension):
                yield self.decode({**leading, name: value})

    def point(self, some: Point) -> dict[str, Any]:
        """Complete a point: other ranges take their middle, and other choices their first option.

        Args:
            some: dimension name -> value. A choice that is not given, but contains a given
                dimension, takes the option that contains it.

        Raises:
            SpecError: `some` is not a mapping; a name is not a dimension (the message gives the
                closest one); a value is not in its dimension; a dimension is within an option
                that a given choice does not take; or two dimensions are within different options
                of one choice.
        """
        known = self.dimensions
        if not isinstance(some, Mapping):
            raise SpecError(f"{some!r} is not a point; give a mapping such as {{'lr': 0.01}}")
        for name, value in some.items():
            if name not in known:
                raise SpecError(
                    f"{name!r} is not a range or choice of the space."
                    f"{did_you_mean(str(name), known)} Known: {', '.join(known)}."
                )
            _check_within(name, value, known[name])
        point: dict[str, Any] = {name: _middle(dimension) for name, dimension in known.items()}
        needed_by: dict[str, str] = {}
        for name in some:
            for above, option in self._leading_to(name).items():
                if some.get(above, option) != option:
                    raise SpecError(
                        f"{name} is not used if {above} is {some[above]}; leave one of them out"
                    )
                if above in needed_by and point[above] != option:
                    raise SpecError(
                        f"{name} and {needed_by[above]} are in different options of {above}, of "
                        "which a configuration has only one; leave one of them out"
                    )
                point[above], needed_by[above] = option, name
        return {**point, **some}

    def _leading_to(self, name: str) -> Mapping[str, int]:
        """Choice that contains a dimension -> index of the option that contains it."""
        return dict(options_above(self.tree, self._root))[name]


def _values(dimension: Dimension) -> Sequence[float]:
    """The indices of all options, or both ends of the range."""
    if isinstance(dimension, Choice):
        return range(len(dimension.options))
    return dimension.low, dimension.high


def _check_within(name: str, value: object, dimension: Dimension) -> None:
    """Refuse a value that is not in a dimension."""
    values = _values(dimension)
    whole = isinstance(dimension, Choice) or dimension.whole
    kind = "option index" if isinstance(dimension, Choice) else "number in the range"
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not values[0] <= value <= values[-1]:  # type: ignore[operator]
        raise SpecError(
            f"{name}: {value!r} is not a{' whole' if whole else ''} {kind} from {values[0]} to "
            f"{values[-1]}"
        )


def _middle(dimension: Dimension) -> float:
    """The middle of a range (of the logarithms if `log`), or the index of the first option."""
    if isinstance(dimension, Choice):
        return 0
    low, high = dimension.low, dimension.high
    middle = math.sqrt(low * high) if dimension.log else (low + high) / 2
    return int(middle) if dimension.whole else middle


def _check_names(space: Space, path: str) -> None:
    """Refuse names by which a dimension could not be told from others."""
    names = [name for name, _ in dimensions_of(space.tree, space._root)]
    for name in names:
        if "/" in name:
            raise SpecError(
                f"{path}: the name {name!r} contains a slash, which Ray Tune reads as nesting; "
                "write another name"
            )
        if names.count(name) > 1:
            raise SpecError(
                f"{path}: {name!r} names two ranges or choices, because a name contains a dot and "
                "nested names are joined by dots; rename one of them"
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


def _parse_union(space: Any, path: str) -> dict[str, Any] | Choice:
    if isinstance(space, Mapping):
        return _parse_mapping(space, path)
    if isinstance(space, list | tuple) and space and all(isinstance(s, Mapping) for s in space):
        return Choice(tuple(_parse_mapping(s, f"{path}.{i}") for i, s in enumerate(space)))
    raise SpecError(
        f"{path}: must be a mapping of settings to lists or ranges, or a list of such mappings, "
        f"not {space!r}"
    )


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
