"""Computing the descriptors of a real network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynopt_ray.arrays import IntArray
from dynopt_ray.policies.costs import CHARGED_COSTS
from dynopt_ray.policies.descriptors import KINDS, Descriptors, stack_descriptors
from dynopt_ray.policies.unit_scores import (
    group_scores,
    maskable_weights,
    num_unmasked,
    producing_weights,
    summarise,
)
from dynopt_ray.structure import Cost, Graph, WidthGroup
from dynopt_ray.transfers import read_together, to_device


@dataclass(frozen=True, eq=False)
class DescribedNetwork:
    """A network to describe.

    Attributes:
        graph: the network.
        cursor: index of the group under the cursor.
        start_widths: group name -> width at the start.
        start_cost: the network's cost at the start.
    """

    graph: Graph
    cursor: int
    start_widths: Mapping[str, int]
    start_cost: Cost


def describe_graph(
    graph: Graph,
    cursor: int,
    *,
    start_widths: Mapping[str, int],
    start_cost: Cost,
) -> Descriptors:
    """Return the descriptors of one network; see `DescribedNetwork`."""
    return describe_graphs([DescribedNetwork(graph, cursor, start_widths, start_cost)])


def describe_graphs(networks: Sequence[DescribedNetwork]) -> Descriptors:
    """Return the descriptors of networks, which must all have the same number of groups.

    Figures of all networks are read together, so that the host waits for a GPU once.
    """
    unread = [_Unread(network) for network in networks]
    found = iter(read_together([tensor for one in unread for tensor in one.tensors]))
    return stack_descriptors([one.read([next(found) for _ in one.tensors]) for one in unread])


class _Unread:
    """The descriptors of one network, before the host has read the figures from its device.

    Attributes:
        tensors: what has to be read.
    """

    def __init__(self, network: DescribedNetwork) -> None:
        graph = network.graph
        group = graph.groups[network.cursor]
        self._network = network
        self._cost = graph.unread_cost()
        self._weights = producing_weights(graph, group)
        self._maskable = maskable_weights(graph)
        scores = group_scores(graph, group)[None]
        width = torch.full((1,), group.width, device=scores.device)
        parameters = dict(graph.model.named_parameters())
        own = {s.parameter for s in group.slices if s.parameter in parameters}
        self._places = [place for place, name in enumerate(parameters) if name in own]
        self.tensors = [
            *summarise(scores, _incoming(graph, group, scores.device)[None], width),
            *map(num_unmasked, self._maskable.values()),
            *self._cost.counts,
        ]

    def read(self, tensors: Sequence[Tensor]) -> Descriptors:
        """Return the descriptors, once the tensors have been read."""
        quantiles, dead, redundant, *rest = tensors
        numbers, counts = rest[: len(self._maskable)], rest[len(self._maskable) :]
        unmasked = dict(zip(self._maskable, map(int, numbers), strict=True))
        graph, start_widths = self._network.graph, self._network.start_widths
        cost = self._cost.read(counts)
        nonzero = sum(int(counts[place]) for place in self._places)
        start = self._network.start_cost
        return Descriptors(
            widths=_row([g.width for g in graph.groups]),
            start_widths=_row([start_widths[g.name] for g in graph.groups]),
            cursor=np.array([self._network.cursor]),
            min_widths=_row([g.min_width for g in graph.groups]),
            steps=_row([g.step for g in graph.groups]),
            kind=np.array([_kind(self._weights)]),
            quantiles=quantiles.numpy(),
            dead=dead.numpy().astype(np.float64),
            redundant=redundant.numpy().astype(np.float64),
            num_weights=np.array([sum(weight.numel() for weight in self._weights.values())]),
            num_unmasked_each=_row([unmasked[name] for name in self._weights]),
            cost_share=np.array([nonzero / max(cost.nonzero, 1)]),
            costs=np.array([[cost.relative_to(start, kind) for kind in CHARGED_COSTS]]),
            nonzero=np.array([cost.nonzero]),
            num_spare=np.array([sum(number - 1 for number in unmasked.values() if number)]),
        )


def _incoming(graph: Graph, group: WidthGroup, device: torch.device) -> Tensor:
    """Return each unit's weights in the first parameter that produces the group, (width, D)."""
    weights = producing_weights(graph, group)
    for s in group.slices:
        weight = weights.get(s.parameter)
        if s.role == "out" and weight is not None:
            rows = weight.detach().movedim(s.dim, 0)[to_device(s.positions, weight.device)]
            return rows.reshape(group.width, -1).to(device)
    return torch.zeros(group.width, 1, device=device)


def _kind(weights: Mapping[str, Tensor]) -> int:
    ndim = next((weight.ndim for weight in weights.values()), 0)
    return KINDS.index("linear" if ndim == 2 else "convolution" if ndim > 2 else "other")


def _row(values: list[int]) -> IntArray:
    return np.array([values], dtype=np.int64)
