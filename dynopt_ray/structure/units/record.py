"""The record of a trace: everything it found out about the units of a network."""

import bisect
import math
import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from dynopt_ray.structure.units.labels import ID, IdArray, Labels
from dynopt_ray.structure.units.reach import Passage

Role = Literal["out", "in", "scale"]

Place = tuple[str, str, int | None]
"""An integer attribute: its module's dotted name, its own name, and an index into it or None."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """One use of a weight that reads units. Compensation refits such weights.

    Attributes:
        weight: name of the weight.
        bias: name of its bias, or None.
        mean: name of the running mean of the BatchNorm that follows directly, or None.
        groups: number of groups of a convolution; 1 otherwise.
        dims: the dimensions of input, weight and output in the joint space of a sum of products;
            None for a convolution.
    """

    weight: str
    bias: str | None = None
    mean: str | None = None
    groups: int = 1
    dims: "Contraction | None" = None

    def makes(self, dim: int) -> bool:
        """Whether the units along dimension `dim` of the result are made by the weight."""
        if self.dims is None:
            return dim == 1
        place = self.dims.output[dim]
        return place in self.dims.weight and place not in self.dims.input


@dataclass(frozen=True)
class Contraction:
    """A sum of products of an input and a weight, described like an `einsum`.

    The joint space has one dimension for each index of the `einsum`.

    Attributes:
        input: for each dimension of the input, its dimension in the joint space.
        weight: the same for each dimension of the weight.
        output: the same for each dimension of the result.
    """

    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Work:
    """The work of one operation, in multiply-adds or bytes: a product of sizes.

    Attributes:
        coefficient: the product of all sizes that do not depend on widths.
        factors: arrays of ids; their lengths are the other sizes.
    """

    coefficient: int
    factors: tuple[IdArray, ...]

    @classmethod
    def over(cls, labels: Labels, sizes: Sequence[int]) -> "Work":
        """Return the work of one step for each element of a space of these sizes."""
        labelled = {dim for label in labels for dim in label.dims}
        rest = math.prod(size for dim, size in enumerate(sizes) if dim not in labelled)
        return cls(rest, tuple(label.ids.ravel() for label in labels))


@dataclass(frozen=True, eq=False)
class Link:
    """An integer attribute of a module that follows the size of a dimension.

    Attributes:
        place: the attribute.
        ids: the unit ids along that dimension, one per coordinate.
        of_layer: whether it is known to count coordinates: `out_features`, not a size in a view,
            which may count the heads or the coordinates of one head.
    """

    place: Place
    ids: IdArray
    of_layer: bool = False


@dataclass(frozen=True)
class WeightNorm:
    """A weight that is computed as `gain * direction / |direction|`.

    Attributes:
        gain: name of the parameter with the gains.
        direction: name of the parameter with the directions.
        dim: the dimension with one gain per coordinate; None if there is a single gain.
    """

    gain: str
    direction: str
    dim: int | None


@dataclass(frozen=True, eq=False)
class NumberUsed:
    """A use of sizes as a value, such as a scale of `dim ** -0.5` or a comparison.

    Attributes:
        number: the value, or the outcome of the comparison.
        sources: the ids that are counted, and the attributes that are read.
    """

    number: int
    sources: tuple["IdArray | Place", ...]


@dataclass
class Record:
    """Everything that a trace found out about the units of a network."""

    names: dict[int, str]
    """`id` of each parameter and buffer -> its name."""
    with_costs: bool = True
    """Whether work, bytes and blocks are recorded too."""
    ties: list[tuple[IdArray, IdArray]] = field(default_factory=list)
    """Pairs of id arrays. Ids that correspond after broadcasting belong to the same unit."""
    pinned: list[tuple[IdArray, str]] = field(default_factory=list)
    """Units that cannot be resized, with the reason."""
    mixed: list[tuple[IdArray, str]] = field(default_factory=list)
    """Units whose number the output depends on, with the reason. A row of a 2-D array counts if its
    units differ."""
    counted: list[tuple[IdArray, IdArray]] = field(default_factory=list)
    """Pairs (ids, others) for sizes computed from a count of `others`. They are tied unless `ids`
    already are these units."""
    normed: list[tuple[IdArray, str]] = field(default_factory=list)
    """Units that the norm of a weight sums over, and where. Units with zero weights do not change
    the norm."""
    divisors: list[tuple[IdArray, str]] = field(default_factory=list)
    """Units of a divisor, and where it divides. Units with zero weights would give 0/0."""
    scaled: list[IdArray] = field(default_factory=list)
    """Units along weights that are scaled by values which may depend on them."""
    weight_norms: list[WeightNorm] = field(default_factory=list)
    """Weights that are computed from gains and directions."""
    never_one: list[IdArray] = field(default_factory=list)
    """Units of which at least two must stay, because a dimension of size 1 is squeezed away."""
    parted: list[IdArray] = field(default_factory=list)
    """Units in one slice of a dimension. What is done to them may differ from what is done to the
    rest, so they form groups of their own."""
    factors: list[IdArray] = field(default_factory=list)
    """Ids of dimensions that a view split in several. Units must vary along one of these only."""
    passages: list[Passage] = field(default_factory=list)
    """The operations that may read units, in forward order."""
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    """(parameter, dimension) -> its role."""
    first_use: dict[str, int] = field(default_factory=dict)
    """Parameter or buffer -> rank of its first use in the forward pass."""
    hidden: set[tuple[str, int]] = field(default_factory=set)
    """(parameter, dimension) pairs that never are widths, such as kernel sizes."""
    consumers: dict[str, list[Consumer]] = field(default_factory=lambda: defaultdict(list))
    """Weight -> its uses, in forward order."""
    work: list[Work] = field(default_factory=list)
    """Multiply-adds of each product."""
    made: list[Work] = field(default_factory=list)
    """Bytes that each operation writes."""
    links: list[Link] = field(default_factory=list)
    """Attributes of modules that follow a size."""
    sizes_of_data: set[Place] = field(default_factory=set)
    """Attributes that give sizes along which no units lie."""
    numbers: list[NumberUsed] = field(default_factory=list)
    """Sizes that enter the computation as values, in forward order."""
    parameter_ids: dict[tuple[str, int], IdArray] = field(default_factory=dict)
    """(parameter, dimension) -> its ids, one per coordinate."""
    num_ids: int = 0
    """The number of ids in use: 0 … num_ids - 1."""
    blocks: dict[str, int | None] = field(default_factory=dict)
    """Modules that are called once and return a tensor like the one they take -> the number of
    further outputs, or None if the output is a single tensor."""
    followed: dict[str, None] = field(default_factory=dict)
    """Modules that the pass did not reach and that follow a sibling in the same list."""
    caches: dict[tuple[nn.Module | type[nn.Module], str], Any] = field(default_factory=dict)
    """(module, attribute) pairs: where modules keep tensors for the next pass -> the value
    without them; see `Surroundings`."""
    _owned: list[tuple[int, tuple[str, int]]] = field(default_factory=list)

    def own(self, key: tuple[str, int], size: int) -> IdArray:
        """Return the ids of a parameter's dimension; the first call creates them."""
        if key not in self.parameter_ids:
            if size:
                self._owned.append((self.num_ids, key))
            self.parameter_ids[key] = self.fresh(size)
        return self.parameter_ids[key]

    def fresh(self, size: int) -> IdArray:
        """Return new ids, which no tensor carries yet."""
        ids = np.arange(self.num_ids, self.num_ids + size, dtype=ID)
        self.num_ids += size
        return ids

    def nonlinear(self) -> frozenset[tuple[str, int]]:
        """Return the dimensions that read units in a way that is not linear in the weights."""
        ids = [ids for ids, _ in self.normed] + self.scaled
        keys = {key for array in ids for key in self.owners(array)}
        return frozenset(key for key in keys if self.roles.get(key) == "in")

    def pass_through(self, taken: Sequence[IdArray], carried: Sequence[IdArray]) -> None:
        """Note which ids an operation takes in, and which its results carry on; see `Passage`."""
        same = set(map(id, carried))
        taken = [ids for ids in taken if id(ids) not in same]
        if taken:
            self.passages.append(Passage(taken, carried))

    def owners(self, ids: IdArray) -> list[tuple[str, int]]:
        """Return the parameter dimensions that own some of these ids."""
        found = []
        rest = ids.ravel()
        while len(rest):
            first = int(rest.min())
            after = bisect.bisect_right(self._owned, first, key=operator.itemgetter(0))
            key = self._owned[after - 1][1]
            last = self.parameter_ids[key][-1]
            if first <= last:
                found.append(key)
            elif after == len(self._owned):
                break  # these ids were created inside the forward pass
            rest = rest[rest > max(last, first)]
        return found
