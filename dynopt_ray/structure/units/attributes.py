"""Integer attributes of modules that follow a width, such as `out_features` or `num_heads`."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from dynopt_ray.structure.units.grouping import Grouping
from dynopt_ray.structure.units.groups import WidthGroup
from dynopt_ray.structure.units.record import Link, Place


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of a module, and how much one more unit of each group adds to it.

    Attributes:
        module: dotted name of the module; "" is the network itself.
        name: name of the attribute.
        index: index of the entry if the attribute is a tuple or list; else None.
        per_unit: group name -> change of the value per added unit.
    """

    module: str
    name: str
    index: int | None
    per_unit: Mapping[str, int]

    @property
    def place(self) -> Place:
        """The attribute as a `Place`."""
        return self.module, self.name, self.index

    def read(self, model: nn.Module) -> int:
        """Return the current value."""
        value = getattr(model.get_submodule(self.module), self.name)
        return int(value if self.index is None else value[self.index])

    def write(self, model: nn.Module, value: int) -> None:
        """Set the value; tuples and lists keep their type and their other entries."""
        module = model.get_submodule(self.module)
        if self.index is None:
            setattr(module, self.name, value)
            return
        entries = list(getattr(module, self.name))
        entries[self.index] = value
        setattr(module, self.name, type(getattr(module, self.name))(entries))

    def change(self, added: Mapping[str, int]) -> int:
        """Return the change of the value if `added[group]` units are added (negative: removed)."""
        return sum(step * added.get(group, 0) for group, step in self.per_unit.items())


def linked_attributes(links: Sequence[Link], grouping: Grouping) -> list[Attribute]:
    """Return the linked attributes that follow the width of a group."""
    found: dict[Place, Attribute] = {}
    for link in links:
        per_unit = _per_unit(link, grouping)
        attribute = Attribute(*link.place, per_unit)
        if per_unit:
            found[link.place] = attribute
    return list(found.values())


def _per_unit(link: Link, grouping: Grouping) -> dict[str, int]:
    """Return the number of coordinates that each unit of a group has among the ids.

    The result is empty if the units of a group differ in this number, because such a size does not
    follow the width.
    """
    per_unit, ids = {}, link.ids
    group_of, unit_of = grouping.group_of[ids], grouping.unit_of[ids]
    present = group_of[group_of >= 0]
    if len(present) and bool((present == present[0]).all()):  # the usual case
        present = present[:1]
    for index in np.unique(present).tolist():
        group = grouping.groups[index]
        times = np.bincount(unit_of[group_of == index], minlength=group.width)
        # If all ids are of a single unit, the attribute may count units or the unit's coordinates.
        alone = len(ids) == times.sum() and group.width == 1 < times[0]
        ambiguous = alone and not link.of_layer
        if bool((times != times[0]).any()) or ambiguous:
            return {}
        per_unit[group.name] = int(times[0])
    return per_unit


def attributes_changed(
    model: nn.Module, attributes: Sequence[Attribute], added: Mapping[str, int]
) -> contextlib.ExitStack:
    """Return a context in which the attributes fit widths with `added[group]` more units."""
    with contextlib.ExitStack() as stack:
        for attribute in attributes:
            value = attribute.read(model)
            stack.callback(attribute.write, model, value)
            attribute.write(model, value + attribute.change(added))
        return stack.pop_all()


def candidate_attributes(model: nn.Module, group: WidthGroup) -> Iterator[Attribute]:
    """Yield the integer attributes that may follow a group, because they equal one of its sizes.

    The search covers the modules that own the group's parameters and all modules that contain them.
    """
    sizes = {group.width * s.positions.shape[1]: s.positions.shape[1] for s in group.slices}
    sizes.setdefault(group.width, 1)
    for name in _containing(s.parameter for s in group.slices):
        module = model.get_submodule(name)
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or attribute == "training":
                continue
            entries = list(enumerate(value)) if isinstance(value, tuple | list) else [(None, value)]
            for index, entry in entries:
                if type(entry) is int and entry > 1 and entry in sizes:
                    yield Attribute(name, attribute, index, {group.name: sizes[entry]})


def _containing(parameters: Iterable[str]) -> list[str]:
    """Return the names of all modules that contain some of the parameters, innermost first."""
    names: dict[str, None] = {}
    for parameter in parameters:
        name = parameter
        while name:
            name = name.rpartition(".")[0]
            names[name] = None
    return sorted(names, key=lambda n: -n.count(".") - bool(n))
