"""Curves of `sensitivity`, read as what each width of a group is expected to cost in loss."""

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
        widths: the widths the group can have, rising by its step up to the one it has.
        increases: the increase of the loss at each of them, falling to 0.
        corners: those that were measured, rising, and the least.
    """

    widths: tuple[int, ...]
    increases: FloatArray
    corners: tuple[int, ...]

    def __call__(self, width: int) -> float:
        """The increase of the loss at a width."""
        return float(self.increases[self._place[width]])

    def narrowest(self, below: float) -> int | None:
        """The least width whose increase of the loss is below a figure, if there is one."""
        is_below = self.increases < below
        return self.widths[int(is_below.argmax())] if is_below.any() else None

    def next_to(self, width: int) -> tuple[int, ...]:
        """The widths worth a look from here: those that were measured, and a step either way."""
        place = self._place[width]
        nearest = self.widths[max(place - 1, 0) : place + 2]
        return tuple(sorted({*self.corners, *nearest} - {width}))

    @cached_property
    def _place(self) -> dict[int, int]:
        return {width: place for place, width in enumerate(self.widths)}


def check_columns(table: object, columns: Sequence[str]) -> None:
    """Refuse what is no table of curves.

    Raises:
        TypeError: that.
    """
    for name in columns:
        if name not in getattr(table, "columns", ()):
            raise TypeError(
                f"curves has no column {name!r}; pass what sensitivity(model, task) returns"
            )


def read_curves(table: "pd.DataFrame", graph: Graph, *, least: Widths) -> dict[str, Curve]:
    """Group name -> its curve, for the groups that the table has.

    The loss is made non-decreasing in what is removed and is linear between measured widths.

    Args:
        table: what `sensitivity` returns, for units.
        graph: the network it was measured on.
        least: group name -> the fewest units it keeps.

    Raises:
        TypeError: no such table.
        EditError: it was measured on a network of other widths, or a group cannot be resized.
        UnknownNameError: something that is no group.
        ValueError: no rows, or a loss that is not finite.
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
            f"curves: {group.name!r} was measured from {measured[0]} units on, but has "
            f"{group.width} now; call sensitivity again"
        )
    raised = np.maximum.accumulate([losses[width] for width in measured])
    if not np.isfinite(raised).all():
        raise ValueError(f"curves: a loss of {group.name!r} is not finite; leave that row out")
    widths = np.arange(group.width, max(measured[-1], least) - 1, -group.step)[::-1]
    increases = np.interp(widths, measured[::-1], (raised - raised[0])[::-1])
    corners = {width for width in measured if width in widths} | {int(widths[0])}
    return Curve(tuple(widths.tolist()), increases, tuple(sorted(corners)))
