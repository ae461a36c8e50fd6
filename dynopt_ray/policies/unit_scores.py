"""Scores of units and weights, computed the same way for real and for stacked networks.

A unit's score is the norm of its incoming weights and bias times the norm of its outgoing weights.
A unit that nothing reads scores 0, whatever it computes.

Shapes: N networks, U units, D incoming weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dynopt_ray.criteria import Evidence, sum_over_units
from dynopt_ray.policies.descriptors import DEAD_SCORE, QUANTILES, REDUNDANT_COSINE
from dynopt_ray.population import Population
from dynopt_ray.structure import Graph, WidthGroup, mask_of
from dynopt_ray.transfers import to_device


def scores_of(incoming_squares: Tensor, outgoing_squares: Tensor) -> Tensor:
    """Return scores from sums of squared weights; larger = more important."""
    return (incoming_squares * outgoing_squares).sqrt()


def group_scores(graph: Graph, group: WidthGroup) -> Tensor:
    """Return the scores of a group's units, (group.width,), on the network's device."""
    parameters = dict(graph.model.named_parameters())
    squares = {
        s.parameter: parameters[s.parameter].detach().square()
        for s in group.slices
        if s.parameter in parameters
    }
    incoming = sum_over_units(group, squares, roles={"out"})
    outgoing = sum_over_units(group, squares, roles={"in"})
    return scores_of(incoming, outgoing)


def stacked_scores(population: Population, layer: int, members: Tensor) -> Tensor:
    """Return the scores of the units of one hidden layer, (members, units), padded.

    Args:
        population: the networks.
        layer: number of the hidden layer.
        members: indices of some networks, on the population's device.
    """
    weights, biases = population.weights, population.biases
    incoming = weights[layer][members].square().sum(2) + biases[layer][members].square()
    return scores_of(incoming, weights[layer + 1][members].square().sum(1))


def maskable_weights(graph: Graph) -> dict[str, Tensor]:
    """Return the parameters whose single weights can be masked, by name; see `Evidence.weights`."""
    names = Evidence(graph).weights.keys()
    return {name: p for name, p in graph.model.named_parameters() if name in names}


def producing_weights(graph: Graph, group: WidthGroup) -> dict[str, Tensor]:
    """Return the parameters of two or more dimensions that produce the group's units, by name."""
    parameters = dict(graph.model.named_parameters())
    return {
        s.parameter: parameters[s.parameter]
        for s in group.slices
        if s.role == "out" and s.parameter in parameters and parameters[s.parameter].ndim > 1
    }


def num_unmasked(weight: Tensor) -> Tensor:
    """Return how many entries of a parameter are not masked, as a tensor that is not read yet."""
    keep = mask_of(weight)
    return torch.tensor(weight.numel(), device="cpu") if keep is None else keep.sum()


def lowest(scores_NU: Tensor, width_N: Tensor, count_N: Tensor) -> Tensor:
    """Choose the units with the lowest scores; of equal scores the first.

    Args:
        scores_NU: scores, padded.
        width_N: number of units of each network.
        count_N: number of units to choose in each network.

    Returns:
        bool (N, U), True for the chosen units.
    """
    unit = torch.arange(scores_NU.shape[1], device=scores_NU.device)
    padded = scores_NU.masked_fill(unit >= width_N[:, None], torch.inf)
    order = padded.argsort(dim=1, stable=True)
    chosen = torch.zeros_like(padded, dtype=torch.bool)
    return chosen.scatter_(1, order, (unit < count_N[:, None]).expand_as(order))


def pruned(weights: Sequence[Tensor], keeps: Sequence[Tensor | None], count: int) -> list[Tensor]:
    """Return masks that also remove the `count` smallest of the weights kept so far.

    Args:
        weights: some parameters.
        keeps: their masks so far; None keeps all weights.
        count: number of weights to remove. Each parameter keeps its largest one.

    Returns:
        For each parameter a bool tensor of its shape, False for weights that are held at zero.
    """
    kept = [
        torch.ones_like(weight, dtype=torch.bool) if keep is None else keep
        for weight, keep in zip(weights, keeps, strict=True)
    ]
    sizes = []
    for weight, keep in zip(weights, kept, strict=True):
        size = torch.where(keep, weight.detach().abs(), torch.inf).flatten()
        largest = torch.where(size.isinf(), -1, size).argmax()[None]
        sizes.append(size.index_fill(0, largest, torch.inf))
    numbers = [size.numel() for size in sizes]
    goes = torch.split(_smallest(torch.cat(sizes), count), numbers)
    return [keep & ~gone.reshape(keep.shape) for keep, gone in zip(kept, goes, strict=True)]


def _smallest(values: Tensor, count: int) -> Tensor:
    """Return a bool tensor that is True for the `count` smallest; of equal values for the first."""
    if not count:
        return torch.zeros_like(values, dtype=torch.bool)
    last = values.kthvalue(count).values
    below, equal = values < last, values == last
    return below | (equal & (equal.cumsum(0) <= count - below.sum()))


def summarise(
    scores_NU: Tensor, incoming_NUD: Tensor, width_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Summarise each network's units.

    Args:
        scores_NU: scores, padded.
        incoming_NUD: each unit's incoming weights, padded.
        width_N: number of units of each network.

    Returns:
        `QUANTILES` of the scores over their mean, (N, 5); the fraction of dead units, (N,); the
        fraction of redundant units, (N,). See `DEAD_SCORE` and `REDUNDANT_COSINE`.
    """
    unit = torch.arange(scores_NU.shape[1], device=scores_NU.device)
    absent = unit >= width_N[:, None]
    scores = scores_NU.double().masked_fill(absent, 0)
    mean = scores.sum(1, keepdim=True) / width_N[:, None]
    ordered = scores.masked_fill(absent, torch.inf).sort(dim=1).values
    place = to_device(torch.tensor(QUANTILES, dtype=torch.float64, device="cpu"), scores.device)
    place = place * (width_N[:, None] - 1)
    low, high = place.floor().long(), place.ceil().long()
    quantiles = torch.lerp(ordered.gather(1, low), ordered.gather(1, high), place - low)
    dead = ((scores <= DEAD_SCORE * mean) & ~absent).sum(1) / width_N
    direction = torch.nn.functional.normalize(incoming_NUD, dim=2)
    cosine = torch.bmm(direction, direction.transpose(1, 2)).tril_(-1)
    redundant = ((cosine.amax(2) >= REDUNDANT_COSINE) & ~absent).sum(1) / width_N
    return quantiles / mean.clamp(min=1e-30), dead, redundant
