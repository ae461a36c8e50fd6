"""Descriptors of networks before a decision: plain arrays with one row per network."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from dynopt_ray.arrays import FloatArray, IntArray

KINDS = ("linear", "convolution", "other")
"""The kinds of layers that can produce a width group."""

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The quantiles of a group's unit scores that describe it."""

DEAD_SCORE = 0.01
"""A unit is dead if its score is at most this fraction of the group's mean score."""

REDUNDANT_COSINE = 0.95
"""A unit is redundant if its incoming weights have at least this cosine with an earlier unit's."""


@dataclass(frozen=True, eq=False)
class Descriptors:
    """Descriptors of N networks, and of the group under each network's cursor ("the group").

    Shapes: N networks, G groups, P parameters that produce the group's units.

    Attributes:
        widths: (N, G) widths of all groups.
        start_widths: (N, G) widths of all groups at the start.
        cursor: (N,) index of the group.
        min_widths: (N, G) the fewest units that each group can have.
        steps: (N, G) units of each group are added and removed in multiples of this.
        kind: (N,) index into `KINDS`.
        quantiles: (N, 5) `QUANTILES` of the group's unit scores over their mean.
        dead: (N,) fraction of the group's units that are dead.
        redundant: (N,) fraction of the group's units that are redundant.
        num_weights: (N,) number of weights that produce the group's units.
        num_unmasked_each: (N, P) number of unmasked weights in each parameter that produces the
            group's units; 0 beyond a group's last parameter.
        cost_share: (N,) fraction of the network's non-zero weights that lie in the group's
            parameters.
        costs: (N, 4) costs relative to the start, in the order of `CHARGED_COSTS`.
        nonzero: (N,) number of the network's non-zero weights.
        num_spare: (N,) number of the network's weights that can be masked: all unmasked ones, but
            one in each parameter.
    """

    widths: IntArray
    start_widths: IntArray
    cursor: IntArray
    min_widths: IntArray
    steps: IntArray
    kind: IntArray
    quantiles: FloatArray
    dead: FloatArray
    redundant: FloatArray
    num_weights: IntArray
    num_unmasked_each: IntArray
    cost_share: FloatArray
    costs: FloatArray
    nonzero: IntArray
    num_spare: IntArray

    @property
    def width(self) -> IntArray:
        """(N,) width of the group under the cursor."""
        return self._under_cursor(self.widths)

    @property
    def min_width(self) -> IntArray:
        """(N,) the fewest units that the group under the cursor can have."""
        return self._under_cursor(self.min_widths)

    @property
    def step(self) -> IntArray:
        """(N,) units of the group are added and removed in multiples of this."""
        return self._under_cursor(self.steps)

    @property
    def start_width(self) -> IntArray:
        """(N,) width of the group under the cursor at the start."""
        return self._under_cursor(self.start_widths)

    @property
    def num_unmasked(self) -> IntArray:
        """(N,) number of unmasked weights that produce the group's units."""
        return np.asarray(self.num_unmasked_each.sum(1))

    def row(self, network: int) -> "Descriptors":
        """Return the descriptors of one of the networks, with arrays of one row."""
        return self.rows([network])

    def rows(self, networks: Sequence[int] | IntArray) -> "Descriptors":
        """Return the descriptors of some of the networks."""
        chosen = list(networks)
        return Descriptors(**{f.name: getattr(self, f.name)[chosen] for f in fields(Descriptors)})

    def _under_cursor(self, values: IntArray) -> IntArray:
        return values[np.arange(len(values)), self.cursor]


def stack_descriptors(several: Sequence[Descriptors]) -> Descriptors:
    """Concatenate descriptors of networks, which must all have the same number of groups."""
    most = max(one.num_unmasked_each.shape[1] for one in several)
    columns = {
        field.name: [getattr(one, field.name) for one in several] for field in fields(Descriptors)
    }
    columns["num_unmasked_each"] = [
        np.pad(each, ((0, 0), (0, most - each.shape[1]))) for each in columns["num_unmasked_each"]
    ]
    return Descriptors(**{name: np.concatenate(values) for name, values in columns.items()})
