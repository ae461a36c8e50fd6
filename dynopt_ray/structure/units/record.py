"""What one traced pass says about a network's units."""

import bisect
import math
import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import nn

from dynopt_ray.structure.units.labels import ID, IdArray, Labels

Role = Literal["out", "in", "scale"]

Place = tuple[str, str, int | None]
"""An integer attribute: a module's dotted name, the attribute, which entry of a tuple or None."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """One use of a weight whose inputs are units: what compensation refits.

    Attributes:
        weight: name of the weight.
        bias: name of its bias, or None.
        mean: running mean of the BatchNorm that follows directly, or None.
        groups: groups of a convolution; 1 otherwise.
        dims: of a sum of products, where the dimensions of input, weight and output lie in the
            joint space; None for a convolution.
    """

    weight: str
    bias: str | None = None
    mean: str | None = None
    groups: int = 1
    dims: "Contraction | None" = None

    def makes(self, dim: int) -> bool:
        """Whether the units that the weight makes lie along a dimension of the result."""
        if self.dims is None:
            return dim == 1
        place = self.dims.output[dim]
        return place in self.dims.weight and place not in self.dims.input


@dataclass(frozen=True)
class Contraction:
    """A sum of products of an input and a weight, in the joint space of their dimensions.

    Attributes:
        input: for each dimension of the input, its place in the joint space.
        weight: for each dimension of the weight.
        output: for each dimension of the result.
    """

    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Work:
    """What one operation does: `coefficient` times the sizes of the labelled dimensions."""

    coefficient: int
    factors: tuple[IdArray, ...]

    @classmethod
    def over(cls, labels: Labels, sizes: Sequence[int]) -> "Work":
        """One piece of work for each place of a space of these sizes."""
        labelled = {dim for label in labels for dim in label.dims}
        rest = math.prod(size for dim, size in enumerate(sizes) if dim not in labelled)
        return cls(rest, tuple(label.ids.ravel() for label in labels))


@dataclass(frozen=True, eq=False)
class Link:
    """An integer attribute of a module that follows the size of a dimension.

    Attributes:
        place: the attribute.
        ids: the units along the dimension it follows, one per coordinate.
    """

    place: Place
    ids: IdArray


@dataclass
class Record:
    """Everything one pass says about a network's units."""

    names: dict[int, str]
    with_costs: bool = True
    """Whether work, bytes and blocks are noted too, not ties alone."""
    ties: list[tuple[IdArray, IdArray]] = field(default_factory=list)
    pinned: list[tuple[IdArray, str]] = field(default_factory=list)
    mixed: list[IdArray] = field(default_factory=list)
    counted: list[tuple[IdArray, IdArray]] = field(default_factory=list)
    """Units of which there are as many as of others: tied, unless they are these very units."""
    normed: list[IdArray] = field(default_factory=list)
    """Units whose weights are normalised over them: none shows that has no weights."""
    never_one: list[IdArray] = field(default_factory=list)
    """Units of which two must stay: a dimension of one would be squeezed away."""
    parted: list[IdArray] = field(default_factory=list)
    """Units that an operation treats by where they stand, apart from those beside them."""
    factors: list[IdArray] = field(default_factory=list)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    first_use: dict[str, int] = field(default_factory=dict)
    hidden: set[tuple[str, int]] = field(default_factory=set)
    consumers: dict[str, list[Consumer]] = field(default_factory=lambda: defaultdict(list))
    work: list[Work] = field(default_factory=list)
    made: list[Work] = field(default_factory=list)
    """Bytes of what each operation writes."""
    links: list[Link] = field(default_factory=list)
    valued: set[Place] = field(default_factory=set)
    """Attributes that scale what the network computes, beside whatever size they give."""
    parameter_ids: dict[tuple[str, int], IdArray] = field(default_factory=dict)
    num_ids: int = 0
    blocks: dict[str, int | None] = field(default_factory=dict)
    """Modules called once, that give a tensor like the one they take: how many outputs follow."""
    caches: list[tuple[nn.Module, str]] = field(default_factory=list)
    """Dicts in which modules keep tensors for the next pass."""
    by_value: bool = False
    """Whether the forward pass looked at values, and so may go another way on other data."""
    _owned: list[tuple[int, tuple[str, int]]] = field(default_factory=list)

    def own(self, key: tuple[str, int], size: int) -> IdArray:
        """The ids of a parameter's dimension, fresh ones at first."""
        if key not in self.parameter_ids:
            if size:
                self._owned.append((self.num_ids, key))
            self.parameter_ids[key] = self.fresh(size)
        return self.parameter_ids[key]

    def fresh(self, size: int) -> IdArray:
        """Ids that nothing carries yet."""
        ids = np.arange(self.num_ids, self.num_ids + size, dtype=ID)
        self.num_ids += size
        return ids

    def owners(self, ids: IdArray) -> list[tuple[str, int]]:
        """The parameter dimensions whose own coordinates are among the ids."""
        found = []
        rest = np.unique(ids)
        while len(rest):
            after = bisect.bisect_right(self._owned, rest[0], key=operator.itemgetter(0))
            key = self._owned[after - 1][1]
            last = self.parameter_ids[key][-1]
            if rest[0] <= last:
                found.append(key)
            elif after == len(self._owned):
                break  # made inside forward
            rest = rest[rest > max(last, rest[0])]
        return found
