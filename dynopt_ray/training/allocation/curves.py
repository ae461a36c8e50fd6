"""Curves: the expected increase of the loss for each width of a group, from `sensitivity`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dynopt_ray.arrays import FloatArray
from dynopt_ray.errors import EditError
from dynopt_ray.structure import Graph, WidthGroup
from dynopt_ray.training.budgets import Widths

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Curve:
    """The expected increase of the loss as a group loses units.

    Attributes:
        widths: the widths that the group can have, in ascending steps up to its present width.
        increases: the increase of the loss at each of these widths, descending to 0.
        corners: those of `widths` that were measured, and the smallest one, in ascending order.
    """

    widths: tuple[int, ...]
    increases: FloatArray
    corners: tuple[int, ...]

    def __call__(self, width: int) -> float:
        """Return the increase of the loss at a width."""
        return float(self.increases[self._place[width]])

    def narrowest(self, below: float) -> int | None:
        """Return the smallest width whose increase of the loss is below a value, or None."""
        is_below = self.increases < below
        return self.widths[int(is_below.argmax())] if is_below.any() else None

    def next_to(self, width: int) -> tuple[int, ...]:
        """Return the widths to try from here: all corners, and one step up and down."""
        place = self._place[width]
        nearest = self.widths[max(place - 1, 0) : place + 2]
        return tuple(sorted({*self.corners, *nearest} - {width}))

    @cached_property
    def _place(self) -> dict[int, int]:
        return {width: place for place, width in enumerate(self.widths)}


def check_columns(table: object, columns: Sequence[str]) -> None:
    """Refuse an argument that is not a table with the columns of curves.

    Raises:
        TypeError: a column is missing.
    """
    for name in columns:
        if name not in getattr(table, "columns", ()):
            raise TypeError(
                f"curves has no column {name!r}; pass what sensitivity(model, task) returns"
            )


def read_curves(table: "pd.DataFrame", graph: Graph, *, least: Widths) -> dict[str, Curve]:
    """Return group name -> its curve, for the groups in a table.

    Losses are made non-decreasing in the number of removed units, and interpolated linearly between
    measured widths.

    Args:
        table: what `sensitivity` returned for units.
        graph: the graph of the network that was measured.
        least: group name -> fewest units to keep.

    Raises:
        TypeError: the table lacks a column.
        EditError: the table belongs to other widths, or a group cannot be resized.
        UnknownNameError: a name in the table is not a group.
        ValueError: the table has no rows, or a loss is not finite.
    """
    check_columns(table, ("group", "width", "loss"))
    if table.empty:
        raise ValueError("curves: there are no rows; pass what sensitivity returns")
    read = {}
    for name, rows in table.groupby("group", sort=False):
        group = graph[str(name)]
        losses = {int(w): float(x) for w, x in zip(rows["width"], rows["loss"], strict=True)}
        read[group.name] = _curve(group, losses, least[group.name])
    return read


def _curve(group: WidthGroup, losses: dict[int, float], least: int) -> Curve:
    measured = sorted(losses, reverse=True)
    if measured[0] != group.width:
        raise EditError(
            f"curves: {group.name!r} had {measured[0]} units when it was measured, but has "
            f"{group.width} now; call sensitivity again"
        )
    raised = np.maximum.accumulate([losses[width] for width in measured])
    if not np.isfinite(raised).all():
        raise ValueError(f"curves: a loss of {group.name!r} is not finite; leave that row out")
    widths = np.arange(group.width, max(measured[-1], least) - 1, -group.step)[::-1]
    increases = np.interp(widths, measured[::-1], (raised - raised[0])[::-1])
    corners = {width for width in measured if width in widths} | {int(widths[0])}
    return Curve(tuple(widths.tolist()), increases, tuple(sorted(corners)))
