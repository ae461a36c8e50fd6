"""What `adapt` returns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynopt_ray.structure import Graph, Receipt
from dynopt_ray.tasks import Metrics
from dynopt_ray.training import CostAndMetrics

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class AdaptResult:
    """What a policy did to a network.

    Attributes:
        history: a DataFrame with one row per decision; row 0 is the network before. Columns: step,
            group, action, kept, utility, smooth_utility, train_loss, loss, metric and confidence
            (on validation data), the costs, duration_s, and `width/<group>` for each group. The
            row of a decision that was rolled back shows the network before the rollback.
        before: cost and metrics of the network before.
        after: cost and metrics of the network now.
        best_step: the step in `history` whose network was kept in the end.
        utility_before: U = metric − λ · relative cost before.
        utility_after: U now.
        smooth_utility_before: U before, with `Metrics.smooth` instead of the metric.
        smooth_utility_after: U now, with `Metrics.smooth` instead of the metric. It is never less
            than before unless the budget demanded it.
        test: the final metrics on the test split, which influenced no decision; None if the task
            has no test split.
        receipts: receipts of the plans that are still applied; `undo()` the last one first.
        graph: the traced network.
    """

    history: "pd.DataFrame"
    before: CostAndMetrics
    after: CostAndMetrics
    best_step: int
    utility_before: float
    utility_after: float
    smooth_utility_before: float
    smooth_utility_after: float
    test: Metrics | None
    receipts: tuple[Receipt, ...]
    graph: Graph
