"""The best point of the curve that `allocate` predicts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dynopt_ray.policies.costs import ChargedCost
from dynopt_ray.policies.cuts.candidates import Cutting
from dynopt_ray.policies.cuts.policy import CutChoice
from dynopt_ray.policies.cuts.targets import WholeCut
from dynopt_ray.policies.utilities import utility
from dynopt_ray.structure import CostKind
from dynopt_ray.training import AllocatedPoint, allocated_points, sensitivity

if TYPE_CHECKING:
    import pandas as pd

# Steps of a factor of about 0.8, because small networks differ from each other by ratios.
_FRACTIONS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.32, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08, 0.06, 0.05, 0.03)
# Widths alone do not determine the number of non-zero weights, but that of all parameters.
_LIMITED: dict[ChargedCost, CostKind] = {
    "params": "params",
    "nonzero": "params",
    "flops": "flops",
    "bytes": "bytes",
}


@dataclass(frozen=True)
class AllocatedCut:
    """Cut units to the widths with the largest utility that `sensitivity` predicts.

    `sensitivity` measures how the smooth metric falls as single groups lose units. For each of
    several budgets on the charged costs, `allocate` chooses the widths at which the sum of these
    falls is smallest. Among them and the present widths, the cut goes to those with the largest
    predicted utility. Single weights are not removed.

    Attributes:
        fractions: the budgets, as fractions of the present cost in (0, 1), in descending order.
        criterion: ranks the units of each group.
    """

    fractions: tuple[float, ...] = _FRACTIONS
    criterion: str = "reconstruction"

    def choose(self, cutting: Cutting) -> CutChoice:
        """Return the cut to the widths of the best point."""
        curves = _falls(cutting, self.criterion)
        best, widths = _predicted_utility(cutting, None), None
        for point in self._points(cutting, curves):
            predicted = _predicted_utility(cutting, point)
            if predicted > best:
                best, widths = predicted, point.widths
        (candidate,) = cutting.candidates([WholeCut(units=widths)], self.criterion)
        return CutChoice(candidate, (candidate,))

    def _points(self, cutting: Cutting, curves: "pd.DataFrame") -> Iterator[AllocatedPoint]:
        for kind in dict.fromkeys(_LIMITED[charged] for charged in cutting.cost.kinds):
            yield from allocated_points(
                cutting.graph, cutting.costs, curves, kind=kind, fractions=self.fractions
            )


def _falls(cutting: Cutting, criterion: str) -> "pd.DataFrame":
    """Return the curves of all groups with the negative smooth metric in place of the loss."""
    curves = sensitivity(
        cutting.graph,
        cutting.task,
        criterion=criterion,
        compensate=list(cutting.calibration),
        seed=int(torch.randint(2**31, (), generator=cutting.generator, device="cpu")),
    )
    smooth = curves[["metric", "confidence"]].mean(axis=1)  # leaves out a missing confidence
    return curves.assign(loss=-smooth)


def _predicted_utility(cutting: Cutting, point: AllocatedPoint | None) -> float:
    """Return the smooth utility that is predicted for a point, or that of the present network."""
    before = cutting.start.validation.smooth
    if point is None:
        return utility(before, 1.0, cutting.cost_weight)
    relative = cutting.cost.relative(point.cost, cutting.costs.at(cutting.graph.widths))
    return utility(before - point.increase, relative, cutting.cost_weight)
