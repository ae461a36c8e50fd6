"""What is read off networks before a decision: plain arrays, one row per network."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from dynopt_ray.arrays import FloatArray, IntArray

KINDS = ("linear", "convolution", "other")
"""What produces a width group."""

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the unit scores of a group."""

DEAD_SCORE = 0.01
"""A unit is dead when its score is at most this fraction of the group's mean score."""

REDUNDANT_COSINE = 0.95
"""A unit is redundant when an earlier unit's incoming weights point the same way, up to this."""


@dataclass(frozen=True, eq=False)
class Descriptors:
    """Networks and the group under each one's cursor. N networks, G groups.

    Attributes:
        widths: (N, G) widths.
        start_widths: (N, G) widths at the start.
        cursor: (N,) index of the group.
        min_width: (N,) the fewest units the group can have.
        step: (N,) the multiple in which its units come and go.
        kind: (N,) index into `KINDS`.
        quantiles: (N, 5) `QUANTILES` of the unit scores over their mean.
        dead: (N,) share of the group's units that are dead.
        redundant: (N,) share of its units that are redundant.
        num_weights: (N,) weights that make the group's units.
        num_unmasked_each: (N, P) those of them that are not masked, in each of the parameters
            that they lie in; 0 beyond a group's last parameter.
        cost_share: (N,) share of the non-zero weights that lies in the group's tensors.
        costs: (N, 4) costs relative to the start, in the order of `COST_KINDS`.
        nonzero: (N,) non-zero weights.
    """

    widths: IntArray
    start_widths: IntArray
    cursor: IntArray
    min_width: IntArray
    step: IntArray
    kind: IntArray
    quantiles: FloatArray
    dead: FloatArray
    redundant: FloatArray
    num_weights: IntArray
    num_unmasked_each: IntArray
    cost_share: FloatArray
    costs: FloatArray
    nonzero: IntArray

    @property
    def width(self) -> IntArray:
        """(N,) width of the group under the cursor."""
        return self._under_cursor(self.widths)

    @property
    def start_width(self) -> IntArray:
        """(N,) its width at the start."""
        return self._under_cursor(self.start_widths)

    @property
    def num_unmasked(self) -> IntArray:
        """(N,) weights that make the group's units and are not masked."""
        return np.asarray(self.num_unmasked_each.sum(1))

    def row(self, network: int) -> "Descriptors":
        """The reading of one of the networks."""
        return Descriptors(
            **{f.name: getattr(self, f.name)[[network]] for f in fields(Descriptors)}
        )

    def _under_cursor(self, values: IntArray) -> IntArray:
        return values[np.arange(len(values)), self.cursor]


def stack_descriptors(several: Sequence[Descriptors]) -> Descriptors:
    """One reading of all the networks of several; they must have the same number of groups."""
    most = max(one.num_unmasked_each.shape[1] for one in several)
    columns = {
        field.name: [getattr(one, field.name) for one in several] for field in fields(Descriptors)
    }
    columns["num_unmasked_each"] = [
        np.pad(each, ((0, 0), (0, most - each.shape[1]))) for each in columns["num_unmasked_each"]
    ]
    return Descriptors(**{name: np.concatenate(values) for name, values in columns.items()})
