"""Read and write the YAML of specs: plain data of bounded size, and no key twice in a mapping.

Only the values that JSON has are read: texts, numbers, truth values, null, lists and mappings. A
date stays a text. A text of a few hundred bytes can stand for billions of values, because aliases
repeat what they refer to, or for a value that is too deep for Python's stack. So values are counted
with their repetitions, and depth is limited, before any value is built.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from dynopt_ray.errors import SpecError, short

DEEPEST = 40
"""How deeply the values of a spec may be nested."""

_MOST_CHARACTERS = 2**20
_MOST_VALUES = 20_000
_LARGEST = 2**63
# PyYAML follows YAML 1.1, where 1e-3 and 1.5e3 are strings.
_FLOAT = re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = tuple(
    f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")
)
_MERGE = "<<"


def parse(text: str, *, source: str) -> Any:
    """Return the data in a YAML text.

    Args:
        text: one YAML document.
        source: where the text comes from, for messages.

    Raises:
        SpecError: the text is not YAML, is too large or too deeply nested, has other values than
            plain ones, or a mapping has a key twice. The message gives the line and column.

    Example:
        >>> parse("{lr: 1e-3, steps: 10}", source="example")
        {'lr': 0.001, 'steps': 10}
    """
    if len(text) > _MOST_CHARACTERS:
        raise SpecError(
            f"{source}: has {len(text):,} characters; at most {_MOST_CHARACTERS:,} are read. Put "
            "data into a file of their own"
        )
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"{source}{place}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"{source}: not valid YAML: {reason}") from None


def dump(data: Any) -> str:
    """Return plain data as YAML text that `parse` reads back to the same data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, limited to plain values of bounded size, with YAML 1.2 floats."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values = 0
        self._depth = 0
        self._deepest = 0  # of the values read since the present collection began
        self._extents: dict[int, tuple[int, int]] = {}  # id of a node -> its values and its height

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read one value, and count it with everything within it, also if an alias repeats it."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        values, deepest = self._values, self._deepest
        self._depth += 1
        self._deepest = self._depth
        self._check_bounds(event)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._extents:
                raise _problem(f"alias {short(event.anchor)} is part of what it refers to", event)
            size, height = self._extents[id(node)]
        else:
            size, height = self._values - values + 1, self._deepest - self._depth
            self._extents[id(node)] = size, height
        self._values = values + size
        self._deepest = self._depth + height
        self._check_bounds(event)
        self._depth -= 1
        self._deepest = max(deepest, self._deepest)
        return node

    def _check_bounds(self, event: Any) -> None:
        if self._deepest > DEEPEST:
            raise _problem(f"values are nested more than {DEEPEST} deep", event)
        if self._values > _MOST_VALUES:
            raise _problem(f"more than {_MOST_VALUES:,} values, counting repetitions", event)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value. PyYAML's own constructors raise bare errors for texts that do not fit."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError):
            kind = node.tag.removeprefix(_TAG)
            raise _problem(f"{short(node.value)} is no value of type {kind}", node) from None
        if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
            raise _problem("a whole number is beyond 64 bits", node)
        if isinstance(value, str) and not _is_unicode(value):
            raise _problem(f"{short(value)} is half of a character", node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping. PyYAML would silently take the last of several equal keys."""
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)  # raises an error that says so
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _problem(f"key {short(key)} is not a plain value", key_node)
            if key == _MERGE:
                raise _problem("merge keys (<<) are not known; write the keys out", key_node)
            if key in lines:
                first = f"(first in line {lines[key]})"
                raise _problem(f"key {short(key)} is given twice {first}", key_node)
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _problem(text: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, text, place.start_mark)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, but it quotes strings that the loader above would read as numbers."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Unquoted, some line separators (U+0085, U+2028) would be read back as spaces.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for kind in (_Loader, _Dumper):
    kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.yaml_constructors = {
    tag: build for tag, build in _Loader.yaml_constructors.items() if tag in (*_KNOWN_TAGS, None)
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KNOWN_TAGS]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
