"""LAMP: magnitudes that compare across layers."""

from dataclasses import dataclass

from torch import Tensor

from dynopt_ray.criteria.base import Evidence
from dynopt_ray.criteria.norms import unit_norms


def lamp() -> "LAMP":
    """The square of a weight relative to the squares of all those of its layer that would stay.

        score(u) = w_u² / Σ_{v: |w_v| ≥ |w_u|} w_v²

    It is the share of what is left that a layer would lose with its next weight, so that each
    layer keeps at least its largest weight (whose score is 1) and layers need no factors between
    them. Units are treated alike, by their norms (see `magnitude`) within their group.

    References:
        Lee et al. 2021, "Layer-adaptive sparsity for the Magnitude-based Pruning".
    """
    return LAMP()


@dataclass(frozen=True)
class LAMP:
    """See `lamp`."""

    compares_across = True

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """By the norms of all weights of a unit."""
        norms = unit_norms(evidence.graph, evidence.parameters, 2, "sum")
        return {name: _shares(values.square()) for name, values in norms.items()}

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """w² over the sum of the squares that are no smaller."""
        return {name: _shares(weight.square()) for name, weight in evidence.weights.items()}


def _shares(squares: Tensor) -> Tensor:
    """Each over the sum of itself and all larger ones; zeros stay zero."""
    flat, order = squares.flatten().double().sort(stable=True)
    left = flat.flip(0).cumsum(0).flip(0)
    shares = flat.new_empty(flat.shape)
    shares[order] = flat / left.clamp(min=1e-300)
    return shares.reshape(squares.shape)
