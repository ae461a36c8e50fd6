"""Taylor criterion: a weight is important if setting it to zero changes the loss much."""

from dataclasses import dataclass

from torch import Tensor

from dynopt_ray.criteria.aggregate import (
    Aggregate,
    aggregated,
    check_aggregate,
    reading_roles,
    sums_per_slice,
)
from dynopt_ray.criteria.base import Evidence


def taylor(*, squared: bool = False, aggregate: Aggregate = "sum") -> "Taylor":
    """First-order estimate of how much the loss changes without a weight or a unit.

    With g the gradient of the mean loss over all samples, a weight w scores |g·w| and a unit
    |Σ g·w|. The sum runs over the weights of all layers that read the unit, because setting
    these to zero is the same as removing the unit. If no weight reads a unit (coordinates of
    queries and keys), the sum runs over the weights that produce and scale it.

    Args:
        squared: use squares instead of absolute values. The order within a network stays the
            same, but the means that `comparable` divides by change.
        aggregate: "sum" takes the size of the sum over all reading layers. "mean" and "max"
            combine the sizes of each reading layer's own sum, so that layers cannot cancel.

    Raises:
        UnknownNameError: `aggregate` is unknown.

    References:
        Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8 for one
        weight and for a set of weights jointly. The paper uses gradients of mini-batches and
        averages squares over mini-batches, so its scores depend on the batch size. Here g is the
        gradient over all samples.
    """
    return Taylor(squared, aggregate)


@dataclass(frozen=True)
class Taylor:
    """See `taylor`."""

    squared: bool
    aggregate: Aggregate = "sum"

    def __post_init__(self) -> None:
        check_aggregate(self.aggregate)

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """|Σ g·w| or its square, over the weights that read the unit."""
        products = self._products(evidence)
        scores = {}
        for group in evidence.graph:
            changes = sums_per_slice(group, products, roles=reading_roles(group))
            if self.aggregate == "sum":
                changes = changes.sum(0, keepdim=True)
            scores[group.name] = aggregated(self._size(changes), self.aggregate)
        return scores

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """|g·w| or its square, for each weight."""
        products = self._products(evidence)
        return {name: self._size(products[name]) for name in evidence.weights}

    def _products(self, evidence: Evidence) -> dict[str, Tensor]:
        gradients = evidence.gradients
        return {name: gradients[name] * p for name, p in evidence.parameters.items()}

    def _size(self, change: Tensor) -> Tensor:
        return change.square() if self.squared else change.abs()
