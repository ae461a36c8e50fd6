"""A network before and after a change, as compensation gets it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dynopt_ray.structure.units import Attribute, Axis, Change


@dataclass(frozen=True, eq=False)
class BeforeAndAfter:
    """A network before a change, and after the change but before refitting.

    Attributes:
        model: the network, in its old layout.
        old: its parameters and buffers by name.
        new: the same in the new layout.
        attributes: its integer attributes that follow the widths.
        changes: how its groups change.
        axes: tensor name -> dimension -> new layout, for the dimensions that change.
        masks: weight name -> bool tensor in the new layout; False is held at zero.
    """

    model: nn.Module
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    attributes: Sequence[Attribute]
    changes: Sequence[Change]
    axes: Mapping[str, Mapping[int, Axis]]
    masks: Mapping[str, Tensor]


def reading_removed(changes: Sequence[Change]) -> set[str]:
    """Return the parameters that read removed units."""
    return {
        s.parameter
        for change in changes
        if len(change.keep) < change.group.width
        for s in change.group.slices
        if s.role == "in"
    }
