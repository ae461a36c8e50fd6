"""Criteria: scores of units and of weights; larger = more important.

Example:
    >>> import torch
    >>> from dynopt_ray.structure import trace
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = trace(model, torch.zeros(2, 4))
    >>> unit_scores(graph, "magnitude")["0"].shape
    torch.Size([3])
"""

from dynopt_ray.criteria.aggregate import sum_over_units
from dynopt_ray.criteria.base import Criterion, Evidence, Loss
from dynopt_ray.criteria.gradients import Batch, mean_gradients
from dynopt_ray.criteria.magnitude import magnitude
from dynopt_ray.criteria.random import random
from dynopt_ray.criteria.ranking import SCOPES, Per, Scope, comparable
from dynopt_ray.criteria.score import build_criterion, unit_scores, weight_scores
from dynopt_ray.criteria.taylor import taylor

__all__ = [
    "SCOPES",
    "Batch",
    "Criterion",
    "Evidence",
    "Loss",
    "Per",
    "Scope",
    "build_criterion",
    "comparable",
    "magnitude",
    "mean_gradients",
    "random",
    "sum_over_units",
    "taylor",
    "unit_scores",
    "weight_scores",
]
