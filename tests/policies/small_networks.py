"""A small network for tests of policies, and its descriptors."""

import torch
from torch import nn

from dynopt_ray.policies import Descriptors, describe_graph
from dynopt_ray.structure import Graph, trace


def network() -> Graph:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    return trace(model, torch.zeros(2, 4))


def described(graph: Graph, cursor: int = 0) -> Descriptors:
    start = {"0": 8, "2": 6}
    return describe_graph(graph, cursor, start_widths=start, start_cost=graph.cost(start))
