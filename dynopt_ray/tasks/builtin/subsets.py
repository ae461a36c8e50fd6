"""Choose a part of the rows and classes of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.errors import DataError


@dataclass(frozen=True, eq=False)
class ChosenRows:
    """A part of a data set.

    Attributes:
        rows: the numbers of the chosen rows, in ascending order.
        labels: the class of each chosen row, numbered from 0 in the order that was asked for.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]


def chosen_rows(
    labels: NDArray[Any], *, rows: Sequence[int] | None, classes: Sequence[int] | None
) -> ChosenRows:
    """Choose a range of rows, and among them those of some classes.

    Args:
        labels: the class of each row of the data set.
        rows: [first, end] of the range; None is all.
        classes: the classes to keep; None is all.

    Raises:
        TypeError: `rows` or `classes` is not a list of whole numbers.
        ValueError: the range is empty or exceeds the data set, there are fewer than two classes, or
            one is given twice or unknown.
        DataError: a class has no row in the range.
    """
    bounds = [0, len(labels)] if rows is None else _checked("rows", rows)
    if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1] <= len(labels):
        raise ValueError(
            f"rows is {bounds}; give [first, end] with 0 <= first < end <= {len(labels):,}"
        )
    first, end = bounds
    known = sorted({int(label) for label in np.unique(labels)})
    kept = known if classes is None else _checked("classes", classes)
    if len(kept) < 2 or len({*kept}) < len(kept) or not {*kept} <= {*known}:
        raise ValueError(
            f"classes is {kept}; give at least two different ones of {known[0]} … {known[-1]}"
        )
    number = np.full(known[-1] + 1, -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    numbered = number[labels.astype(np.int64)]
    places = first + np.flatnonzero(numbered[first:end] >= 0)
    absent = {*range(len(kept))} - {*numbered[places].tolist()}
    if absent:
        raise DataError(f"no row from {first} to {end} has class {kept[min(absent)]}; use more")
    return ChosenRows(places, numbered[places])


def count_classes(classes: Sequence[int] | None, *, known: int) -> int:
    """Return the number of chosen classes; None chooses all that are known.

    Raises:
        TypeError: `classes` is not a list of whole numbers.
    """
    return known if classes is None else len(_checked("classes", classes))


def _checked(name: str, numbers: Sequence[int]) -> list[int]:
    is_list = isinstance(numbers, Sequence) and not isinstance(numbers, str)
    if not is_list or any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
        raise TypeError(f"{name} must be a list of whole numbers such as [0, 8], not {numbers!r}")
    return list(numbers)
