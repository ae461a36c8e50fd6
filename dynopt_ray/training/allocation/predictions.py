"""The predicted curve of `allocate`: the best widths for each of several budgets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynopt_ray.structure import Cost, CostKind, Graph
from dynopt_ray.training.allocation.curves import read_curves
from dynopt_ray.training.allocation.knapsack import Knapsack
from dynopt_ray.training.budgets import Widths
from dynopt_ray.training.loop import Costs
from dynopt_ray.training.pruning import least_widths

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class AllocatedPoint:
    """The widths that `allocate` chooses for one budget, and what is predicted for them.

    Attributes:
        widths: group name -> width to keep.
        cost: the cost at these widths, per sample; all parameters count as non-zero.
        increase: the predicted increase of the loss, in the unit of the curves.
    """

    widths: Widths
    cost: Cost
    increase: float


def allocated_points(
    graph: Graph,
    costs: Costs,
    curves: "pd.DataFrame",
    *,
    kind: CostKind,
    fractions: Sequence[float],
) -> Iterator[AllocatedPoint]:
    """Yield what `allocate` chooses for each budget on one cost, as long as it can be met.

    Args:
        graph: the traced network.
        costs: the costs of the network.
        curves: what `sensitivity` returned for the units of this network. Its column "loss" may
            hold any other quantity that is to stay low.
        kind: params, flops or bytes.
        fractions: fractions of the present cost, each in (0, 1), in descending order.

    Raises:
        EditError: the curves belong to other widths.
    """
    start = costs.at(graph.widths)
    least = least_widths(graph, start_widths=graph.widths, min_widths={})
    read = read_curves(curves, graph, least=least)
    narrowest = {**graph.widths, **{name: curve.widths[0] for name, curve in read.items()}}
    for fraction in fractions:
        knapsack = Knapsack(
            read,
            {kind: fraction * getattr(start, kind)},
            lambda widths: {kind: getattr(costs.at(widths), kind)},
        )
        if not knapsack.fits(narrowest):
            return
        widths = knapsack.solved(graph.widths)
        yield AllocatedPoint(widths, costs.at(widths), knapsack.loss(widths))
