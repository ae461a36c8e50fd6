"""Units: their ids, the width groups that they form, and their positions in tensors."""

from dynopt_ray.structure.units.attributes import (
    Attribute,
    attributes_changed,
    candidate_attributes,
    linked_attributes,
)
from dynopt_ray.structure.units.grouping import IS_OUTPUT, Grouping, Key, group_units
from dynopt_ray.structure.units.groups import Slice, WidthGroup, producer_name
from dynopt_ray.structure.units.labels import (
    IdArray,
    Label,
    Labels,
    along,
    covering,
    first_along,
    renumbered,
    reshaped,
    spread,
    without,
)
from dynopt_ray.structure.units.layout import Axis, Change, moved_group, new_axes, only_shift
from dynopt_ray.structure.units.record import Consumer, Contraction, Link, Place, Record, Role, Work

__all__ = [
    "IS_OUTPUT",
    "Attribute",
    "Axis",
    "Change",
    "Consumer",
    "Contraction",
    "Grouping",
    "IdArray",
    "Key",
    "Label",
    "Labels",
    "Link",
    "Place",
    "Record",
    "Role",
    "Slice",
    "WidthGroup",
    "Work",
    "along",
    "attributes_changed",
    "candidate_attributes",
    "covering",
    "first_along",
    "group_units",
    "linked_attributes",
    "moved_group",
    "new_axes",
    "only_shift",
    "producer_name",
    "renumbered",
    "reshaped",
    "spread",
    "without",
]
