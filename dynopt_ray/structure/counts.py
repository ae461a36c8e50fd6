"""Sizes that remember which units they count.

`B, N, C = x.shape` hands a forward pass plain numbers, and `q.view(B, N, heads, C // heads)` then
couples the heads of `q` with the coordinates of `x`, though no tensor says so. Under a trace, sizes
of labelled dimensions are integers that know their units, and arithmetic keeps track.
"""

from typing import Any

from dynopt_ray.structure.labels import IntArray
from dynopt_ray.structure.record import Record


class UnitCount(int):
    """A number of units: an integer like any other, which also knows of what.

    Attributes:
        ids: the units that were counted.
        divisor: what the count has been divided by.
        record: is told when a value (not a size) is computed from the count.
    """

    ids: IntArray
    divisor: int
    record: Record

    def __new__(cls, ids: IntArray, record: Record, divisor: int = 1) -> "UnitCount":
        """The count of `ids`, divided."""
        self = super().__new__(cls, ids.size // divisor)
        self.ids, self.record, self.divisor = ids, record, divisor
        return self

    def __floordiv__(self, other: Any) -> Any:
        divisor = self.divisor * other if isinstance(other, int) and other > 0 else 0
        if divisor and self.ids.size % divisor == 0:
            return UnitCount(self.ids, self.record, divisor)
        return int(self) // other

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, int) and other > 0 and self.divisor % other == 0:
            return UnitCount(self.ids, self.record, self.divisor // other)
        return int(self) * other

    __rmul__ = __mul__

    def __float__(self) -> float:
        return float(self._as_value())

    def __truediv__(self, other: Any) -> Any:
        return self._as_value() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._as_value()

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(self._as_value(), other, modulo)

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(other, self._as_value(), modulo)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        """A plain number wherever it is copied to or stored."""
        return int, (int(self),)

    def _as_value(self) -> int:
        """The plain number, where it scales what the network computes."""
        self.record.mixed.append(self.ids.ravel())
        return int(self)
