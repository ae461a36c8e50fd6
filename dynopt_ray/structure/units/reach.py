"""Which units a forward pass reaches: those that an operation reads or that are an output.

A unit is read when an operation takes it in and its result does not carry it on: a product sums
over it, a reduction removes it. Selecting some coordinates of a tensor reads none of the others.
So the rows of a table of positions beyond the length of the example, the free part of a cache and
outputs that nothing uses are not reached. Their size may be set by other data, so they are no
units.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynopt_ray.structure.units.labels import IdArray


@dataclass(frozen=True, eq=False)
class Passage:
    """One operation, as seen by units.

    Attributes:
        taken: the ids along the dimensions of its operands.
        carried: the ids along the dimensions of its results.
    """

    taken: Sequence[IdArray]
    carried: Sequence[IdArray]


def read_units(
    passages: Iterable[Passage], component: IdArray, num_components: int
) -> npt.NDArray[np.bool_]:
    """Return for each component whether some operation takes it in and does not carry it on."""
    read = np.zeros(num_components, dtype=bool)
    carried = np.zeros(num_components, dtype=bool)
    for passage in passages:
        for ids in passage.carried:
            carried[component[ids]] = True
        for ids in passage.taken:
            units = component[ids]
            read[units[~carried[units]]] = True
        for ids in passage.carried:
            carried[component[ids]] = False
    return read
