"""Integers that remember the widths they come from.

A forward pass computes with sizes as plain integers. After `B, N, C = x.shape`, the call
`q.view(B, N, heads, C // heads)` couples the heads of `q` with the coordinates of `x`, although no
tensor operation shows that. Under a trace, the size of a labelled dimension is therefore a
`UnitCount`, which holds the ids that it counts, and an integer attribute of a module is a `Kept`,
which knows its attribute. Divisions without remainder, and a few other operations on `Kept`, give
the same type again. All other arithmetic gives a `Computed`, which only holds its operands. If
units lie along several dimensions together, the size of each of them is an `Extent`.

The forward pass uses such an integer in one of two ways, and both are recorded. As a size (of a
view, a slice or a new tensor), it tells the rules which units or which attribute the size follows.
As a value (in a product with a tensor, or in a comparison), it may make the output depend on the
width. `as_value` records the number, and verification compares it with the number at another width:
the size of a head stays the same if a head is added, but that of the embedding does not. `int(n)`
and `range(n)` drop the tracking. Growth that changes the output through them is caught later, when
`apply` compares the network's outputs before and after.
"""

import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor

from dynopt_ray.structure.units import IdArray, Labels, NumberUsed, Place, Record

SizeSource = IdArray | Place
"""The ids that a size counts, or the attribute that it is read from."""


class Tracked(int):
    """An integer that depends on widths and records each use of it as a value."""

    @abstractmethod
    def sizes(self) -> "Iterable[Size | Extent]":
        """Yield the sizes that the number was computed from."""

    def as_value(self) -> int:
        """Return the plain number, and note that values are computed with it."""
        for size in self.sizes():
            size.record.numbers.append(NumberUsed(int(size), tuple(size.sources())))
        return int(self)

    def __add__(self, other: Any) -> Any:
        return _computed(operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return _computed(operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return _computed(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return _computed(operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return _computed(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return self * other

    def __floordiv__(self, other: Any) -> Any:
        return _computed(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _computed(operator.floordiv, other, self)

    def __mod__(self, other: Any) -> Any:
        return _computed(operator.mod, self, other)

    def __neg__(self) -> Any:
        return _computed(operator.neg, self)

    def __float__(self) -> float:
        return float(self.as_value())

    def __truediv__(self, other: Any) -> Any:
        return self.as_value() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.as_value()

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(self.as_value(), other, modulo)

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(other, self.as_value(), modulo)

    # The outcome of a comparison is what counts, not the numbers.

    def __gt__(self, other: Any) -> bool:
        return self._decided(bool(int(self) > other), other)

    def __ge__(self, other: Any) -> bool:
        return self._decided(bool(int(self) >= other), other)

    def __lt__(self, other: Any) -> bool:
        return self._decided(bool(int(self) < other), other)

    def __le__(self, other: Any) -> bool:
        return self._decided(bool(int(self) <= other), other)

    def _decided(self, outcome: bool, other: Any) -> bool:
        """Note the outcome of a comparison with a plain number, and return it."""
        if not isinstance(other, Tracked):
            for size in self.sizes():
                size.record.numbers.append(NumberUsed(int(outcome), tuple(size.sources())))
        return outcome

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        """Copy and pickle as a plain number."""
        return int, (int(self),)


class Computed(Tracked):
    """The result of arithmetic that no rule follows (`n - 1`, `2 * n + 1`).

    Attributes:
        sources: the tracked operands.
    """

    sources: tuple["Tracked", ...]

    def __new__(cls, value: int, sources: tuple[Tracked, ...]) -> "Computed":
        """Make a number with its sources."""
        self = super().__new__(cls, value)
        self.sources = sources
        return self

    def sizes(self) -> "Iterable[Size | Extent]":
        """See `Tracked`."""
        for source in self.sources:
            yield from source.sizes()


def _computed(operation: Callable[..., Any], *operands: Any) -> Any:
    """Return the result of an operation: a `Computed` if it is an int, else the plain result."""
    result = operation(*(int(o) if isinstance(o, Tracked) else o for o in operands))
    sources = tuple(o for o in operands if isinstance(o, Tracked))
    if type(result) is int:
        return Computed(result, sources)
    if not isinstance(result, list | tuple | str):  # here the number is a length, not a value
        for source in sources:
            source.as_value()
    return result


class Size(Tracked):
    """An integer that may follow a width, possibly after a division without remainder.

    Attributes:
        divisor: the number by which it has been divided.
        divisors: the sizes among its divisors.
        record: the record that `as_value` writes to.
    """

    divisor: int
    divisors: "tuple[Size, ...]" = ()
    record: Record

    @property
    def undivided(self) -> int:
        """The number before any division."""
        return int(self) * self.divisor

    @abstractmethod
    def divided(self, divisor: int) -> Self:
        """Return `undivided`, divided by `divisor`."""

    @abstractmethod
    def own_source(self) -> SizeSource:
        """Return what the size counts or is read from, apart from its divisors."""

    def sizes(self) -> "Iterable[Size | Extent]":
        """See `Tracked`."""
        yield self

    def sources(self) -> Iterable[SizeSource]:
        """Yield everything that the number depends on."""
        yield self.own_source()
        for divisor in self.divisors:
            yield from divisor.sources()

    def __floordiv__(self, other: Any) -> Any:
        divisor = self.divisor * int(other) if isinstance(other, int) and other > 0 else 0
        if divisor and self.undivided % divisor == 0:
            quotient = self.divided(divisor)
            quotient.divisors = (*self.divisors, *([other] if isinstance(other, Size) else ()))
            return quotient
        return super().__floordiv__(other)

    def __truediv__(self, other: Any) -> Any:
        quotient = self // other if isinstance(other, int) and other > 0 else None
        if isinstance(quotient, Size) and int(quotient) * int(other) == int(self):
            return float(quotient.as_value())
        return super().__truediv__(other)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, int) and other > 0 and self.divisor % other == 0:
            return self.divided(self.divisor // other)
        return super().__mul__(other)


class UnitCount(Size):
    """The size of a labelled dimension, or a quotient of it.

    Attributes:
        ids: the ids that are counted.
    """

    ids: IdArray

    def __new__(cls, ids: IdArray, record: Record, divisor: int = 1) -> "UnitCount":
        """Make the number of `ids`, divided by `divisor`."""
        self = super().__new__(cls, ids.size // divisor)
        self.ids, self.record, self.divisor = ids, record, divisor
        return self

    def divided(self, divisor: int) -> "UnitCount":
        """See `Size`."""
        return UnitCount(self.ids, self.record, divisor)

    def own_source(self) -> IdArray:
        """See `Size`."""
        return self.ids.ravel()


class Extent(Tracked):
    """The size of one of several dimensions along which units lie together (heads × coordinates).

    It is no count of units: either dimension may hold the coordinates of one unit.

    Attributes:
        ids: the ids along all of these dimensions.
        record: the record that `as_value` writes to.
    """

    ids: IdArray
    record: Record

    def __new__(cls, ids: IdArray, axis: int, record: Record) -> "Extent":
        """Make the size of `ids` along an axis."""
        self = super().__new__(cls, ids.shape[axis])
        self.ids, self.record = ids, record
        return self

    def __mul__(self, other: Any) -> Any:
        return other * self if isinstance(other, Size) else super().__mul__(other)

    def sizes(self) -> "Iterable[Extent]":
        """See `Tracked`."""
        yield self

    def sources(self) -> Iterable[SizeSource]:
        """Yield what the number depends on."""
        yield self.ids.ravel()


class Kept(Size):
    """An integer that a module keeps as an attribute.

    Attributes:
        place: the attribute.
        value: the attribute's value.
        times: the number by which it has been multiplied, as in `batch * heads`.
        less: the number that has been subtracted, as in `dim - part`.
    """

    place: Place
    value: int
    times: int
    less: int

    def __new__(
        cls,
        value: int,
        place: Place,
        record: Record,
        *,
        divisor: int = 1,
        times: int = 1,
        less: int = 0,
    ) -> "Kept":
        """Make `value // divisor * times - less`."""
        self = super().__new__(cls, value // divisor * times - less)
        self.place, self.record, self.value = place, record, value
        self.divisor, self.times, self.less = divisor, times, less
        return self

    @property
    def whole(self) -> "Kept":
        """The attribute's value without any arithmetic."""
        return Kept(self.value, self.place, self.record)

    def __floordiv__(self, other: Any) -> Any:
        divides = self.times == 1 and not self.less
        return super().__floordiv__(other) if divides else Tracked.__floordiv__(self, other)

    def __mul__(self, other: Any) -> Any:
        plain = type(other) is int or isinstance(other, Extent)
        if not self.less and plain and other > 0 and self.divisor == 1:
            return Kept(self.value, self.place, self.record, times=self.times * int(other))
        if not self.less and self.times == 1:
            return super().__mul__(other)
        return Tracked.__mul__(self, other)

    def __sub__(self, other: Any) -> Any:
        if isinstance(other, int) and int(self) == self.value:
            return Kept(self.value, self.place, self.record, less=int(other))
        return super().__sub__(other)

    def divided(self, divisor: int) -> "Kept":
        """See `Size`."""
        return Kept(self.value, self.place, self.record, divisor=divisor)

    def own_source(self) -> Place:
        """See `Size`."""
        return self.place


def marked(value: Any, module: str, attribute: str, record: Record) -> Any:
    """Return an attribute's value with its positive integers replaced by `Kept`."""
    if type(value) is int:
        return Kept(value, (module, attribute, None), record) if value > 0 else value
    return type(value)(
        Kept(entry, (module, attribute, i), record) if type(entry) is int and entry > 0 else entry
        for i, entry in enumerate(value)
    )


SIZES = {torch.Tensor.size, getattr(torch.Tensor.shape, "__get__")}  # noqa: B009
"""Operations that return the sizes of a tensor."""

NUMBERS = {torch.Tensor.numel, torch.Tensor.nelement, torch.numel, torch.Tensor.__len__}
"""Operations that return the number of entries or rows of a tensor."""


def counted_sizes(
    size: Any, labels: Labels, record: Record, tensor: Tensor, dim: int | None = None
) -> Any:
    """Return one size or all sizes of a tensor; labelled ones are tracked."""
    counts: dict[int, Tracked] = {}
    for label in labels:
        for axis, d in enumerate(label.dims):
            one = len(label.dims) == 1
            counts[d] = UnitCount(label.ids, record) if one else Extent(label.ids, axis, record)
    if dim is None:
        return torch.Size([counts.get(d, s) for d, s in enumerate(size)])
    return counts.get(dim % tensor.ndim, size)


def counted_entries(func: Callable[..., Any], number: Any, labels: Labels, record: Record) -> Any:
    """Return the number of entries or rows of a tensor; labelled dimensions are its sources."""
    counts = [UnitCount(label.ids, record) for label in labels]
    if func is not Tensor.__len__:
        return Computed(number, tuple(counts))
    for label, count in zip(labels, counts, strict=True):
        if 0 in label.dims and number > 1:
            count.as_value()  # `len` returns a plain int
    return number
