"""Reconstruction: what the others cannot stand in for is important."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria.base import Evidence
from dynopt_ray.criteria.readings import Observed, Reading, observed, readers_of, reading
from dynopt_ray.structure.regression import RIDGE, Moments

_MOST_STEPS = 64


def reconstruction(*, weighted: bool = True) -> "Reconstruction":
    """What is lost without a unit after the layers that read it are refitted to do without.

    `prune` refits what reads removed units by least squares; so the loss that counts is the one
    that no refitting mends. Units of a group are taken out one after the other, each time the one
    whose going costs least, and all weights that are left take over what they can:

        cost(u) = Σ_layers tr(W_u [(C⁻¹)_uu]⁻¹ W_uᵀ) / tr(W C Wᵀ)

    with C the second moments of a layer's inputs (about the mean, if the layer or a BatchNorm
    behind it can take up a constant) and W its weights at that moment. A unit scores what the
    dearest one until then cost: of two equal units the first goes for nothing, the second does
    not. Wide groups lose a 64th of their units per step.

    References:
        Hassibi & Stork 1993, "Second order derivatives for network pruning: Optimal Brain
        Surgeon", eq. 5, for one weight of the loss; here for all weights that read a unit and the
        error of the layer, as in Dong et al. 2017, "Learning to Prune Deep Neural Networks via
        Layer-wise Optimal Brain Surgeon".
    """
    return Reconstruction(weighted)


@dataclass(frozen=True)
class Reconstruction:
    """See `reconstruction`."""

    weighted: bool = True
    compares_across = True

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """The share of what layers give that is lost when a unit goes."""
        graph = evidence.graph
        batches, loss = evidence.needed if self.weighted else (evidence.needed_batches, None)
        found: dict[str, _Statistics] = {}
        for batch in observed(graph, batches, loss):
            for (name, _), one in batch.items():
                found.setdefault(name, _Statistics(one)).add(one)
        scores = {}
        for group in graph:
            layers = []
            for s in readers_of(graph, group):
                statistics, consumer = found[s.parameter], graph.consumers[s.parameter][0]
                intercept = bool(consumer.bias or consumer.mean)
                second = statistics.moments.second(intercept=intercept)
                weight = evidence.parameters[s.parameter]
                how = reading(weight, statistics.reader, s, len(second))
                layers.append(_Layer(how, second, statistics.sensitivity_GO))
            scores[group.name] = _eliminated(layers, group.width)
        return scores

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """It has no opinion on single weights."""
        del evidence
        raise TypeError("reconstruction scores units only; use another criterion for weights")


class _Statistics:
    """What is summed up over batches about one weight."""

    def __init__(self, first: Observed) -> None:
        self.reader = first.seen.reader
        self.moments = Moments.start(first.seen.inputs_GRK, 1)
        self._squares_GO: Tensor | None = None

    def add(self, one: Observed) -> None:
        """Add a batch."""
        x_GRK = one.seen.inputs_GRK.detach()
        self.moments.add(x_GRK, x_GRK.new_zeros(*x_GRK.shape[:2], 1))
        if one.slopes_RGO is not None:
            squares = one.places * one.slopes_RGO.double().square().sum(0)
            self._squares_GO = squares if self._squares_GO is None else self._squares_GO + squares

    @property
    def sensitivity_GO(self) -> Tensor | None:
        """How much the loss of a sample rises with squared errors of what the weight gives."""
        return None if self._squares_GO is None else self._squares_GO / (2 * self.moments.count)


class _Layer:
    """A layer while units go."""

    def __init__(self, how: Reading, second_GKK: Tensor, sensitivity_GO: Tensor | None) -> None:
        self._groups_UM, self._inputs_UMQ = how.groups_UM, how.inputs_UMQ
        self._weight_GOK = how.weight_GOK.double()
        if sensitivity_GO is not None:
            self._weight_GOK = self._weight_GOK * sensitivity_GO.sqrt()[:, :, None]
        size = second_GKK.shape[1]
        scale = second_GKK.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        shift = (RIDGE * scale)[:, None].expand(-1, size)
        self._inverse_GKK = torch.linalg.inv(second_GKK + torch.diag_embed(shift))
        energy = ((self._weight_GOK @ second_GKK) * self._weight_GOK).sum()
        self._scale = 1.0 if sensitivity_GO is not None else 1 / float(energy.clamp(min=1e-300))

    def costs(self) -> Tensor:
        """What each unit would cost now, (U,)."""
        g, k = self._groups_UM[:, :, None], self._inputs_UMQ
        own = self._inverse_GKK[g[..., None], k[..., None], k[:, :, None]]
        w = self._weight_GOK.transpose(1, 2)[g, k]  # (U, M, Q, O)
        costs: Tensor = (w * torch.linalg.solve(own, w)).sum((1, 2, 3)) * self._scale
        return costs

    def remove(self, units: Tensor) -> None:
        """Take units out; the rest takes over."""
        for group in sorted({*self._groups_UM[units].flatten().tolist()}):
            here = self._groups_UM[units] == group
            k = self._inputs_UMQ[units][here].flatten()
            inverse = self._inverse_GKK[group]
            columns = inverse[:, k]
            solved = torch.linalg.solve(columns[k], columns.T)  # (q, K)
            weight = self._weight_GOK[group]
            self._weight_GOK[group] = weight - weight[:, k] @ solved
            self._inverse_GKK[group] = inverse - columns @ solved
            # What is gone costs nothing further, and is never looked at again.
            self._inverse_GKK[group, k, k] = 1.0
            self._weight_GOK[group][:, k] = 0.0


def _eliminated(layers: list[_Layer], width: int) -> Tensor:
    scores = torch.zeros(width, dtype=torch.float64)
    left = torch.ones(width, dtype=torch.bool)
    dearest = 0.0
    per_step = max(1, width // _MOST_STEPS)
    while bool(left.any()):
        costs = sum(layer.costs() for layer in layers)
        assert isinstance(costs, Tensor)
        costs = costs.cpu().masked_fill(~left, torch.inf)
        least, units = costs.topk(min(per_step, int(left.sum())), largest=False)
        for unit, cost in zip(units.tolist(), least.tolist(), strict=True):
            dearest = max(dearest, cost)
            scores[unit] = dearest
        left[units] = False
        if bool(left.any()):
            for layer in layers:
                layer.remove(units)
    return scores
