"""Width groups: what can be resized, and every tensor slice that must follow."""

import itertools
import re
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dynopt_ray.structure.units.labels import IdArray
from dynopt_ray.structure.units.record import Role

# weight, bias; weight_ih_l0 of recurrent layers, weight_ih of their cells; in_proj_weight, bias_k
# of attention.
_LAYER_PARAMETER = re.compile(
    r"((in|[qkv])_proj_)?(weight|bias)(_(ih|hh|hr)(_l\d+(_reverse)?)?|_[kv])?"
)

# What torch.nn.utils.parametrize makes of a weight.
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*$")


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the units of a width group lie along one dimension of one parameter or buffer.

    Attributes:
        parameter: dotted name of the parameter or buffer.
        dim: the dimension.
        role: "out" makes the units, "in" reads them, "scale" acts on each by itself.
        positions: LongTensor (width, k); row u has the coordinates of unit u, in order.
        runs: lengths of the contiguous runs in which one unit's coordinates lie; they sum to k.
    """

    parameter: str
    dim: int
    role: Role
    positions: Tensor
    runs: tuple[int, ...]

    @property
    def is_regular(self) -> bool:
        """Whether units follow each other, in the order of their numbers, in each run."""
        positions = self.positions.numpy()
        steps = self.runs[0] if len(self.runs) == 1 else np.repeat(self.runs, self.runs)
        return bool((positions[1:] - positions[:-1] == steps).all())


@dataclass(frozen=True, eq=False)
class WidthGroup:
    """All tensor slices that must be resized together so that a network stays valid.

    Attributes:
        name: dotted name of the first module or parameter that produces the width.
        width: number of units, numbered 0 … width - 1.
        exact_growth: False where added units must change the network's output, because it
            depends on their number (a LayerNorm over this very width).
        slices: one for each dimension of a parameter or buffer that the units lie along.
        producers: names of all modules and parameters that produce the width.
        min_width: the fewest units that can remain.
        step: units come and go in multiples of this.
    """

    name: str
    width: int
    exact_growth: bool
    slices: tuple[Slice, ...]
    producers: tuple[str, ...]
    min_width: int = 1
    step: int = 1

    def __repr__(self) -> str:
        note = "" if self.exact_growth else ", exact_growth=False"
        return f"WidthGroup({self.name!r}, width={self.width}{note})"


def contiguous_runs(positions: IdArray) -> tuple[int, ...]:
    """Lengths of the contiguous runs among one unit's sorted coordinates."""
    breaks = np.flatnonzero(positions[1:] - positions[:-1] != 1) if len(positions) > 1 else ()
    edges = [0, *(int(b) + 1 for b in breaks), len(positions)]
    return tuple(b - a for a, b in itertools.pairwise(edges))


def producer_name(parameter: str) -> str:
    """The module that owns a weight or bias of torch's names; otherwise the parameter itself."""
    module, _, name = _PARAMETRIZED.sub(r"\1", parameter).rpartition(".")
    return module if module and _LAYER_PARAMETER.fullmatch(name) else parameter
