"""LAMP criterion: magnitudes that can be compared across layers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria.base import Evidence
from dynopt_ray.criteria.norms import unit_norms


def lamp() -> "LAMP":
    """Score a weight by its square, relative to all squares of its layer that are no smaller.

        score(u) = w_u² / Σ_{v: |w_v| ≥ |w_u|} w_v²

    If the weights of a layer are removed in the order of their size, the score is the fraction of
    the remaining squared norm that is lost with each weight. The largest weight of each layer
    scores 1, so every layer keeps at least that weight, and scores of different layers can be
    compared without further factors. Units are scored in the same way, by their norms (see
    `magnitude`) within their group.

    References:
        Lee et al. 2021, "Layer-adaptive sparsity for the Magnitude-based Pruning".
    """
    return LAMP()


@dataclass(frozen=True)
class LAMP:
    """See `lamp`."""

    compares_across = True

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """LAMP scores of the units' norms, each norm over all weights of a unit."""
        norms = unit_norms(evidence.graph, evidence.parameters, 2, "sum")
        return {name: _shares(values.square()) for name, values in norms.items()}

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """w² divided by the sum of the squares of the layer that are no smaller."""
        return {name: _shares(weight.square()) for name, weight in evidence.weights.items()}


def _shares(squares: Tensor) -> Tensor:
    """Divide each square by the sum of itself and all larger ones; zeros stay zero."""
    flat, order = squares.flatten().double().sort(stable=True)
    # A GPU has no deterministic sum like this one.
    place = "cpu" if torch.are_deterministic_algorithms_enabled() else flat.device
    left = flat.to(place).flip(0).cumsum(0).flip(0).to(flat.device)
    shares = flat.new_empty(flat.shape)
    shares[order] = flat / left.clamp(min=1e-300)
    return shares.reshape(squares.shape)
