"""Sizes that modules keep for code that the traced pass does not run.

A recurrent network has a method `init_hidden` that makes its first state from `self.hidden_size`,
and a training loop calls it. The trace sees neither. Such an attribute must follow the width that
it states, or the method returns states of the old size. It is recognised by its value, which equals
the size of a group inside the module, and by one of three signs:

1. A layer inside has an attribute of the same name that follows the group (`hidden_size`).
2. The code of the module's class makes a tensor or a layer of that size.
3. The name is one of those that people give to widths.

If several groups have this size, the third sign does not say which of them is meant. If the code
makes a tensor of that size, all groups that the first sign allows are meant: their units are added
and removed together, as for an attribute that the pass uses in several places. Names of other
counts (`num_layers`) never follow, because they equal a width only by chance.
"""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from dynopt_ray.structure.units.attributes import (
    Attribute,
    candidate_attributes,
    linked_attributes,
)
from dynopt_ray.structure.units.class_code import (
    called_name,
    class_code,
    makes_tensor,
    methods_of,
)
from dynopt_ray.structure.units.grouping import Grouping, Key
from dynopt_ray.structure.units.record import Place, Record

_NAME_OF_A_WIDTH = re.compile(
    r"(?!in(put)?_|out(put)?_).*(hidden|nhid|latent|embed|d_model|num_features|channels|planes|units).*"
)
_NAME_OF_A_COUNT = re.compile(r".*(layers|depth|directions|batch|steps|length|seq).*")


@dataclass(frozen=True)
class OutsideSizes:
    """Attributes that state a width outside the traced pass.

    Attributes:
        follow: the attributes that follow one group.
        tie: attribute -> the parameter dimensions whose units it counts; they are tied.
    """

    follow: Sequence[Attribute]
    tie: Mapping[Place, Sequence[Key]]


def outside_sizes(model: nn.Module, record: Record, grouping: Grouping) -> OutsideSizes:
    """Find the attributes of modules that state a width but that the traced pass does not use."""
    linked = linked_attributes(record.links, grouping)
    used = {link.place for link in record.links} | record.sizes_of_data
    used |= {s for use in record.numbers for s in use.sources if isinstance(s, tuple)}
    options: dict[Place, list[Attribute]] = defaultdict(list)
    for group in grouping.groups:
        for attribute in candidate_attributes(model, group):
            if attribute.place not in used:
                options[attribute.place].append(attribute)
    follow: list[Attribute] = []
    tie: dict[Place, Sequence[Key]] = {}
    for place, found in options.items():
        if _NAME_OF_A_COUNT.fullmatch(place[1]):
            continue
        module = model.get_submodule(place[0])
        kind: Any = type(module)  # mypy takes the hash of a module for that of its class
        code = _code(kind)
        namesakes = [a for a in found if any(_is_namesake(a, other) for other in linked)]
        units = namesakes or [a for a in found if [*a.per_unit.values()] == [1]] or found
        named = place[1] in code.tensors | code.layers or _NAME_OF_A_WIDTH.fullmatch(place[1])
        if len(units) == 1 and (namesakes or named):
            follow += units
        elif len(units) > 1 and place[1] in code.tensors:
            tie[place] = [key for a in units for key in _counted_by(a, record, grouping)]
    return OutsideSizes(follow, tie)


def _is_namesake(attribute: Attribute, linked: Attribute) -> bool:
    """Return whether an attribute of a module inside has the same name and follows the same."""
    inside = not attribute.module or linked.module.startswith(f"{attribute.module}.")
    return (
        inside
        and linked.name == attribute.name
        and dict(linked.per_unit) == dict(attribute.per_unit)
    )


def _counted_by(attribute: Attribute, record: Record, grouping: Grouping) -> Iterator[Key]:
    """Yield one dimension, if any, that consists of the coordinates that the attribute counts."""
    ((name, per_unit),) = attribute.per_unit.items()
    group = next(g for g in grouping.groups if g.name == name)
    for s in group.slices:
        key = s.parameter, s.dim
        if (
            s.positions.shape[1] == per_unit
            and s.positions.numel() == record.parameter_ids[key].size
        ):
            yield key
            return


@dataclass(frozen=True)
class _Code:
    """Attributes that a class reads to make tensors, and to make layers, outside of `__init__`."""

    tensors: frozenset[str]
    layers: frozenset[str]


@functools.cache
def _code(kind: type[nn.Module]) -> _Code:
    tensors: set[str] = set()
    layers: set[str] = set()
    for tree in class_code(cast(Any, kind)):
        for method in methods_of(tree):
            made, built = _reads_of(method)
            tensors |= made
            layers |= built
    return _Code(frozenset(tensors), frozenset(layers))


def _reads_of(method: ast.FunctionDef) -> tuple[set[str], set[str]]:
    """Return the attributes of `self` that a method reads to make tensors, and to make layers."""
    own = method.args.args[0].arg if method.args.args else ""
    tensors: set[str] = set()
    layers: set[str] = set()
    for call in ast.walk(method):
        if not isinstance(call, ast.Call):
            continue
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        read = {attribute for node in arguments for attribute in _attributes_of(own, node)}
        if makes_tensor(call):
            # The size may have a name of its own: `size = self.hidden_size`.
            tensors |= read if method.name == "forward" else set(_attributes_of(own, method))
        elif called_name(call)[:1].isupper():
            layers |= read
    return tensors, layers


def _attributes_of(own: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == own
            and isinstance(node.ctx, ast.Load)
        ):
            yield node.attr
