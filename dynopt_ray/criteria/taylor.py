"""Taylor expansion: what raises the loss most when it is set to zero is important."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria.aggregate import reading_roles, sum_over_units
from dynopt_ray.criteria.base import Evidence


def taylor(*, squared: bool = False) -> "Taylor":
    """First-order estimate of how much the loss changes without a weight or a unit.

    With g the gradient of the mean loss over all samples, a weight w scores |g·w|, and a unit
    |Σ g·w|. The sum runs over the weights that read the unit, because it is gone exactly when
    they are zero; where several layers read it, it runs over all of them. Units that no weight
    reads (coordinates of queries and keys) take the weights that make them.

    Args:
        squared: squares instead of absolute values. The order within a network is the same; the
            means that `comparable` divides by are not.

    References:
        Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8 for one
        weight and for a set of weights jointly. There g is a mini-batch's and squares are
        averaged over mini-batches, which makes scores depend on the batch size; here g is that
        of all samples.
    """
    return Taylor(squared)


@dataclass(frozen=True)
class Taylor:
    """See `taylor`."""

    squared: bool

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """|Σ g·w| or its square, over what reads the unit."""
        products = self._products(evidence)
        return {
            group.name: self._size()(sum_over_units(group, products, roles=reading_roles(group)))
            for group in evidence.graph
        }

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """|g·w| or its square."""
        products = self._products(evidence)
        return {name: self._size()(products[name]) for name in evidence.weights}

    def _products(self, evidence: Evidence) -> dict[str, Tensor]:
        gradients = evidence.gradients
        return {name: gradients[name] * p for name, p in evidence.parameters.items()}

    def _size(self) -> Callable[[Tensor], Tensor]:
        return torch.square if self.squared else torch.abs
