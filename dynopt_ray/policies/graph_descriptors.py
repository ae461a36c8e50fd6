"""Computing the descriptors of a real network."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dynopt_ray.arrays import IntArray
from dynopt_ray.policies.descriptors import KINDS, Descriptors
from dynopt_ray.policies.unit_scores import (
    group_scores,
    num_unmasked,
    producing_weights,
    summarise,
)
from dynopt_ray.policies.utilities import CHARGED_COSTS
from dynopt_ray.structure import Cost, Graph, WidthGroup


def describe_graph(
    graph: Graph,
    cursor: int,
    *,
    start_widths: Mapping[str, int],
    start_cost: Cost,
) -> Descriptors:
    """Return the descriptors of one network.

    Args:
        graph: the network.
        cursor: index of the group under the cursor.
        start_widths: group name -> width at the start.
        start_cost: the network's cost at the start.
    """
    group = graph.groups[cursor]
    weights = producing_weights(graph, group)
    quantiles, dead, redundant = summarise(
        group_scores(graph, group)[None],
        _incoming(graph, group)[None],
        torch.tensor([group.width], device="cpu"),
    )
    cost = graph.cost()
    return Descriptors(
        widths=_row([g.width for g in graph.groups]),
        start_widths=_row([start_widths[g.name] for g in graph.groups]),
        cursor=np.array([cursor]),
        min_width=np.array([group.min_width]),
        step=np.array([group.step]),
        kind=np.array([_kind(weights)]),
        quantiles=quantiles.cpu().numpy(),
        dead=dead.cpu().numpy().astype(np.float64),
        redundant=redundant.cpu().numpy().astype(np.float64),
        num_weights=np.array([sum(weight.numel() for weight in weights.values())]),
        num_unmasked_each=_row([num_unmasked(weight) for weight in weights.values()]),
        cost_share=np.array([_nonzero_of(graph, group) / max(cost.nonzero, 1)]),
        costs=np.array([[cost.relative_to(start_cost, kind) for kind in CHARGED_COSTS]]),
        nonzero=np.array([cost.nonzero]),
    )


def _incoming(graph: Graph, group: WidthGroup) -> Tensor:
    """Return each unit's weights in the first parameter that produces the group, (width, D)."""
    for s in group.slices:
        weight = producing_weights(graph, group).get(s.parameter)
        if s.role == "out" and weight is not None:
            rows = weight.detach().movedim(s.dim, 0)[s.positions.to(weight.device)]
            return rows.reshape(group.width, -1).cpu()
    return torch.zeros(group.width, 1, device="cpu")


def _nonzero_of(graph: Graph, group: WidthGroup) -> int:
    parameters = dict(graph.model.named_parameters())
    names = {s.parameter for s in group.slices if s.parameter in parameters}
    return sum(int(parameters[name].count_nonzero()) for name in names)


def _kind(weights: Mapping[str, Tensor]) -> int:
    ndim = next((weight.ndim for weight in weights.values()), 0)
    return KINDS.index("linear" if ndim == 2 else "convolution" if ndim > 2 else "other")


def _row(values: list[int]) -> IntArray:
    return np.array([values], dtype=np.int64)
