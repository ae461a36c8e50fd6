"""What a pass notes about units whose number the output may depend on, with the reasons."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from dynopt_ray.structure.units import IdArray, Labels, Record


class Inexactness:
    """The units that cannot be added without changing the output, as one pass finds them.

    Args:
        record: the record of the pass, to which the units are added.
        running: the modules that are running, outermost first, with their names.
    """

    def __init__(self, record: Record, running: Sequence[tuple[str, nn.Module]]) -> None:
        self._record = record
        self._running = running
        self.operation: object = None

    def mixes(self, ids: IdArray, axis: int | None = None, *, why: str) -> None:
        """Note that the result depends on the number of these units.

        With an axis, ids that are equal along it do not count (a norm over each head).
        """
        if axis is None or ids.ndim == 1:
            ids = ids.ravel()
        else:
            ids = np.moveaxis(ids, axis, -1).reshape(-1, ids.shape[axis])
        self._record.mixed.append((ids, self._cause(why)))

    def norms(self, ids: IdArray) -> None:
        """Note that zero weights of new units leave the result as it is (a norm of weights)."""
        self._record.normed.append((ids.ravel(), self._cause("sums over them")))

    def divides(self, ids: IdArray) -> None:
        """Note that zero weights of new units would give 0/0."""
        cause = self._cause("divides by them, and 0/0 is NaN")
        self._record.divisors.append((ids.ravel(), cause))

    def scales(self, labels: Labels) -> None:
        """Note that a weight is scaled by values that may depend on it.

        The result is then not linear in the weights of the units along it.
        """
        self._record.scaled += [label.ids.ravel() for label in labels]

    def _cause(self, why: str) -> str:
        """Return why growth is not exact, with the operation that runs and its module."""
        name = getattr(self.operation, "__name__", "an operation")
        module = self._running[-1][0] if self._running else ""
        return f"`{name}` in {module!r} {why}" if module else f"`{name}` {why}"
