"""Criteria: score units and weights by importance; larger = more important.

Example:
    >>> import torch
    >>> from dynopt_ray.structure import trace
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = trace(model, torch.zeros(2, 4))
    >>> unit_scores(graph, "magnitude")["0"].shape
    torch.Size([3])
"""

from dynopt_ray.criteria.activation_energy import activation
from dynopt_ray.criteria.aggregate import Aggregate, reading_roles, sum_over_units
from dynopt_ray.criteria.base import Criterion, Evidence, Loss
from dynopt_ray.criteria.batchnorm_scales import batchnorm_scale
from dynopt_ray.criteria.fpgm_distances import fpgm
from dynopt_ray.criteria.gradient_sizes import gradient
from dynopt_ray.criteria.gradients import Batch, mean_gradients, sample_gradients
from dynopt_ray.criteria.hessian_diagonal import hessian
from dynopt_ray.criteria.lamp_scores import lamp
from dynopt_ray.criteria.magnitude_norms import magnitude
from dynopt_ray.criteria.random_scores import random
from dynopt_ray.criteria.ranking import SCOPES, Per, Scope, comparable
from dynopt_ray.criteria.reconstruction_errors import LEAST_RIDGE, reconstruction
from dynopt_ray.criteria.row_mixing import separate_rows, without_ones
from dynopt_ray.criteria.score import CriterionLike, build_criterion, unit_scores, weight_scores
from dynopt_ray.criteria.taylor_expansion import taylor
from dynopt_ray.criteria.unit_inputs import observed, reading

__all__ = [
    "LEAST_RIDGE",
    "SCOPES",
    "Aggregate",
    "Batch",
    "Criterion",
    "CriterionLike",
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
    "observed",
    "random",
    "reading",
    "reading_roles",
    "reconstruction",
    "sample_gradients",
    "separate_rows",
    "sum_over_units",
    "taylor",
    "unit_scores",
    "weight_scores",
    "without_ones",
]
