"""Read and write the YAML of specs: floats as in YAML 1.2, and no key twice in a mapping."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from dynopt_ray.errors import SpecError

# PyYAML follows YAML 1.1, where 1e-3 and 1.5e3 are strings.
_FLOAT = re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")


def parse(text: str, *, source: str) -> Any:
    """Return the data in a YAML text.

    Args:
        text: one YAML document.
        source: where the text comes from, for messages.

    Raises:
        SpecError: the text is not YAML, or a mapping has a key twice. The message gives the line
            and column.

    Example:
        >>> parse("{lr: 1e-3, steps: 10}", source="example")
        {'lr': 0.001, 'steps': 10}
    """
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
    """PyYAML's safe loader, but with YAML 1.2 floats and an error for a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping. PyYAML would silently take the last of several equal keys."""
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            problem = ""
            if not isinstance(key, Hashable):
                problem = f"key {key!r} is not a plain value"
            elif key in lines:
                problem = f"key {key!r} is given twice (first in line {lines[key]})"
            if problem:
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(None, None, problem, mark)
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, but it quotes strings that the loader above would read as numbers."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Unquoted, some line separators (U+0085, U+2028) would be read back as spaces.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for kind in (_Loader, _Dumper):
    kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
