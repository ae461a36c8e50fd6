"""FPGM criterion: a unit that other units can replace is unimportant."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria.base import Evidence
from dynopt_ray.structure import WidthGroup


def fpgm() -> "FPGM":
    """Score units by the sum of distances from their weights to those of the group's other units.

    The unit with the smallest sum is nearest to the geometric median, so the other units can
    replace it best. The weights compared are those that produce a unit, without biases.

    References:
        He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural
        Networks Acceleration", eq. 6: the sum over all filters of ‖x − F_j‖₂.
    """
    return FPGM()


@dataclass(frozen=True)
class FPGM:
    """See `fpgm`."""

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """Σ_j ‖w_i − w_j‖₂ for each unit i."""
        return {group.name: _distances(group, evidence) for group in evidence.graph}

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """Refuse, because this criterion scores units only."""
        del evidence
        raise TypeError("fpgm scores units only; use another criterion for weights")


def _distances(group: WidthGroup, evidence: Evidence) -> Tensor:
    makers = [s for s in group.slices if s.role == "out" and s.parameter in evidence.weights]
    rows = []
    for s in makers:
        along = evidence.weights[s.parameter].movedim(s.dim, 0)
        of_units = along[s.positions.to(along.device)]
        rows.append(of_units.reshape(group.width, -1).float().to(evidence.device))
    if not rows:
        return torch.zeros(group.width, device=evidence.device)
    weights = torch.cat(rows, dim=1)
    return torch.cdist(weights, weights).sum(1)
