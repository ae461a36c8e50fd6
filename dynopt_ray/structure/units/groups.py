"""Width groups: units that can be added or removed, and every tensor slice that must follow."""

import itertools
import re
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dynopt_ray.structure.units.labels import IdArray
from dynopt_ray.structure.units.record import Role

# The names that torch's layers give their parameters: weight and bias; weight_ih_l0 of recurrent
# layers, weight_ih of their cells; in_proj_weight and bias_k of attention. Torch's pruning and its
# old weight normalisation append _orig, _g or _v.
_LAYER_PARAMETER = re.compile(
    r"((in|[qkv])_proj_)?(weight|bias)(_(ih|hh|hr)(_l\d+(_reverse)?)?|_[kv])?(_orig|_[gv])?"
)

# The name that torch.nn.utils.parametrize gives to a parametrized weight.
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*$")


@dataclass(frozen=True, eq=False)
class Slice:
    """The positions of a width group's units along one dimension of one parameter or buffer.

    Attributes:
        parameter: dotted name of the parameter or buffer.
        dim: the dimension.
        role: "out" if the dimension makes the units, "in" if it reads them, "scale" if it acts on
            each unit separately.
        positions: LongTensor (width, k); row u holds the coordinates of unit u, in order.
        runs: lengths of the contiguous runs that one unit's coordinates form; they sum to k.
    """

    parameter: str
    dim: int
    role: Role
    positions: Tensor
    runs: tuple[int, ...]

    @property
    def is_regular(self) -> bool:
        """Whether the units are adjacent and in the order of their numbers, in each run."""
        positions = self.positions.numpy()
        steps = self.runs[0] if len(self.runs) == 1 else np.repeat(self.runs, self.runs)
        return bool((positions[1:] - positions[:-1] == steps).all())


@dataclass(frozen=True, eq=False)
class WidthGroup:
    """All tensor slices that must be resized together so that the network stays valid.

    Attributes:
        name: dotted name of the first module or parameter that produces the width.
        width: number of units, numbered 0 … width - 1.
        exact_growth: False if adding units must change the network's output, because the output
            depends on their number (a LayerNorm over this width).
        slices: one for each dimension of a parameter or buffer along which the units lie.
        producers: names of all modules and parameters that produce the width.
        min_width: the fewest units that can remain.
        step: units are added and removed in multiples of this.
        why_inexact: why growth is not exact; empty if it is.
    """

    name: str
    width: int
    exact_growth: bool
    slices: tuple[Slice, ...]
    producers: tuple[str, ...]
    min_width: int = 1
    step: int = 1
    why_inexact: str = ""

    def __repr__(self) -> str:
        note = "" if self.exact_growth else ", exact_growth=False"
        return f"WidthGroup({self.name!r}, width={self.width}{note})"


def contiguous_runs(positions: IdArray) -> tuple[int, ...]:
    """Return the lengths of the contiguous runs in one unit's sorted coordinates."""
    breaks = np.flatnonzero(positions[1:] - positions[:-1] != 1) if len(positions) > 1 else ()
    edges = [0, *(int(b) + 1 for b in breaks), len(positions)]
    return tuple(b - a for a, b in itertools.pairwise(edges))


def producer_name(parameter: str) -> str:
    """Return the module that owns a parameter named as in torch's layers; else the parameter."""
    module, _, name = _PARAMETRIZED.sub(r"\1", parameter).rpartition(".")
    return module if module and _LAYER_PARAMETER.fullmatch(name) else parameter
