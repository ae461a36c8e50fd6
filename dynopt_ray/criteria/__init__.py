"""Criteria: scores of units and of weights; larger = more important.

Example:
    >>> import torch
    >>> from dynopt_ray.structure import trace
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = trace(model, torch.zeros(2, 4))
    >>> unit_scores(graph, "magnitude")["0"].shape
    torch.Size([3])
"""

from dynopt_ray.criteria.activation import activation
from dynopt_ray.criteria.aggregate import Aggregate, sum_over_units
from dynopt_ray.criteria.base import Criterion, Evidence, Loss
from dynopt_ray.criteria.batchnorm_scale import batchnorm_scale
from dynopt_ray.criteria.fpgm import fpgm
from dynopt_ray.criteria.gradient import gradient
from dynopt_ray.criteria.gradients import Batch, mean_gradients, sample_gradients
from dynopt_ray.criteria.hessian import hessian
from dynopt_ray.criteria.lamp import lamp
from dynopt_ray.criteria.magnitude import magnitude
from dynopt_ray.criteria.random import random
from dynopt_ray.criteria.ranking import SCOPES, Per, Scope, comparable
from dynopt_ray.criteria.reconstruction import reconstruction
from dynopt_ray.criteria.score import build_criterion, unit_scores, weight_scores
from dynopt_ray.criteria.taylor import taylor

__all__ = [
    "SCOPES",
    "Aggregate",
    "Batch",
    "Criterion",
    "Evidence",
    "Loss",
    "Per",
    "Scope",
    "activation",
    "batchnorm_scale",
    "build_criterion",
    "comparable",
    "fpgm",
    "gradient",
    "hessian",
    "lamp",
    "magnitude",
    "mean_gradients",
    "random",
    "reconstruction",
    "sample_gradients",
    "sum_over_units",
    "taylor",
    "unit_scores",
    "weight_scores",
]
