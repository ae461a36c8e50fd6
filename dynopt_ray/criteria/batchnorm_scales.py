"""Batch-norm scale criterion: a unit that the network itself scales down is unimportant."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynopt_ray.criteria.aggregate import Aggregate, aggregated, check_aggregate, sums_per_slice
from dynopt_ray.criteria.base import Evidence
from dynopt_ray.errors import CriterionError


def batchnorm_scale(*, aggregate: Aggregate = "sum") -> "BatchNormScale":
    """Score units by |γ|, the factor by which the normalisation after them scales them.

    This criterion is meant for networks trained with an L1 penalty on γ, which makes the factors
    of useless channels small. For other networks |γ| says little. Every group needs a
    normalisation with learned factors (BatchNorm, InstanceNorm or GroupNorm).

    Args:
        aggregate: how the factors are combined if several normalisations scale a unit.

    Raises:
        UnknownNameError: `aggregate` is unknown.
        CriterionError: when scoring, a group is not scaled by any normalisation.

    References:
        Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming".
    """
    return BatchNormScale(aggregate)


@dataclass(frozen=True)
class BatchNormScale:
    """See `batchnorm_scale`."""

    aggregate: Aggregate = "sum"

    def __post_init__(self) -> None:
        check_aggregate(self.aggregate)

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """|γ| of each unit."""
        graph = evidence.graph
        factors = {
            name: evidence.parameters[name].abs()
            for name in (f"{module}.weight" for module in _normalisations(graph.model))
            if name in evidence.parameters
        }
        found = {g.name: sums_per_slice(g, factors, roles=("scale", "out")) for g in graph}
        if missing := [name for name, sums in found.items() if not len(sums)]:
            raise CriterionError(
                f"batchnorm_scale: no normalisation scales the units of {missing}, so they have "
                "no score. Use another criterion, or fix these groups: trace(…, fixed=…)"
            )
        return {name: aggregated(sums, self.aggregate) for name, sums in found.items()}

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """Refuse, because this criterion scores units only."""
        del evidence
        raise TypeError("batchnorm_scale scores units only; use another criterion for weights")


_NORMALISATIONS = (
    torch.nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm
    nn.GroupNorm,
)


def _normalisations(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, _NORMALISATIONS)]
