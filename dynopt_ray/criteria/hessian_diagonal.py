"""Hessian criterion: a second-order estimate of the loss increase without a weight or unit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria.aggregate import reading_roles, sum_over_units
from dynopt_ray.criteria.base import Evidence


def hessian() -> "Hessian":
    """Second-order estimate of how much the loss rises if a weight or a unit is set to zero.

    At a minimum of the loss, setting weights w_i to zero raises it by about ½ Σ H_ii w_i², with
    H_ii the curvature along w_i. The curvature is estimated by the Fisher information, the mean
    over samples n of squared gradients:

        weight: ½ · mean_n (g_n · w)²        unit: ½ · mean_n (Σ g_n · w)²

    The sum runs over the weights that read the unit, as for `taylor`. The gradients are those of
    single samples, so scores do not depend on how samples are batched. If torch cannot compute
    the gradients of many samples at once, the network runs on one sample at a time.

    References:
        LeCun, Denker, Solla 1990, "Optimal Brain Damage": the diagonal of the Hessian.
        Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning": the
        Fisher information in place of the Hessian, also for whole feature maps.
    """
    return Hessian()


@dataclass(frozen=True)
class Hessian:
    """See `hessian`."""

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """½ · mean (Σ g·w)² over samples."""
        graph = evidence.graph
        totals = {g.name: torch.zeros(g.width, device=evidence.device) for g in graph}
        num_samples = 0
        for gradients in evidence.sample_gradients():
            products = {n: g * evidence.parameters[n] for n, g in gradients.items()}
            num_samples += len(next(iter(gradients.values())))
            for group in graph:
                over_units = torch.func.vmap(
                    lambda values, group=group: sum_over_units(
                        group, values, roles=reading_roles(group)
                    )
                )
                totals[group.name] += over_units(products).square().sum(0)
        return {name: total / (2 * num_samples) for name, total in totals.items()}

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """½ · mean (g·w)² over samples."""
        totals = {name: torch.zeros_like(weight) for name, weight in evidence.weights.items()}
        num_samples = 0
        for gradients in evidence.sample_gradients():
            num_samples += len(next(iter(gradients.values())))
            for name, total in totals.items():
                total += gradients[name].square().sum(0)
        return {
            name: total * evidence.weights[name].square() / (2 * num_samples)
            for name, total in totals.items()
        }
