"""Units: their ids, the width groups that they form, and their positions in tensors."""

from dynopt_ray.structure.units.attributes import (
    Attribute,
    attributes_changed,
    candidate_attributes,
    linked_attributes,
)
from dynopt_ray.structure.units.class_code import may_use
from dynopt_ray.structure.units.grouping import IS_OUTPUT, Grouping, Key, group_units
from dynopt_ray.structure.units.groups import Slice, WidthGroup, producer_name
from dynopt_ray.structure.units.labels import (
    ID,
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
from dynopt_ray.structure.units.outside_forward import OutsideSizes, outside_sizes
from dynopt_ray.structure.units.record import (
    Consumer,
    Contraction,
    Link,
    NumberUsed,
    Place,
    Record,
    Role,
    WeightNorm,
    Work,
)
from dynopt_ray.structure.units.sizes_in_code import stated_sizes

__all__ = [
    "ID",
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
    "NumberUsed",
    "OutsideSizes",
    "Place",
    "Record",
    "Role",
    "Slice",
    "WeightNorm",
    "WidthGroup",
    "Work",
    "along",
    "attributes_changed",
    "candidate_attributes",
    "covering",
    "first_along",
    "group_units",
    "linked_attributes",
    "may_use",
    "moved_group",
    "new_axes",
    "only_shift",
    "outside_sizes",
    "producer_name",
    "renumbered",
    "reshaped",
    "spread",
    "stated_sizes",
    "without",
]
