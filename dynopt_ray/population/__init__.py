"""Stacked training: many MLPs of different widths, trained as one set of tensors.

Example:
    >>> import torch
    >>> from dynopt_ray.population import Population, batch_rows, evaluate, train_steps
    >>> from dynopt_ray.tasks import load_task
    >>> task = load_task("digits-mlp")
    >>> population = Population(task.new_model(seed=0), num_members=4)
    >>> x, y = task.arrays("train")
    >>> rows = batch_rows(len(y), 32, 60, [torch.Generator().manual_seed(i) for i in range(4)])
    >>> losses = train_steps(population, x, y, rows, learning_rate=0.05, momentum=0.9)
    >>> bool((evaluate(population, *task.arrays("validation")).accuracy > 0.8).all())
    True
"""

from dynopt_ray.population.edits import MarkedUnits, grow, mask_marked, shrink, shrink_marked
from dynopt_ray.population.elimination import unit_errors
from dynopt_ray.population.evaluation import PopulationMetrics, evaluate
from dynopt_ray.population.joint_training import (
    MemberMetrics,
    evaluate_together,
    train_together,
)
from dynopt_ray.population.layout import MlpLayout, mlp_layout
from dynopt_ray.population.padded import (
    ACTIVATIONS,
    PaddedMember,
    PaddedSize,
    StepRule,
    checked_layout,
    padded_inputs,
)
from dynopt_ray.population.stack import Population
from dynopt_ray.population.steps import batch_rows, check_finite, train_steps

__all__ = [
    "ACTIVATIONS",
    "MarkedUnits",
    "MemberMetrics",
    "MlpLayout",
    "PaddedMember",
    "PaddedSize",
    "Population",
    "PopulationMetrics",
    "StepRule",
    "batch_rows",
    "check_finite",
    "checked_layout",
    "evaluate",
    "evaluate_together",
    "grow",
    "mask_marked",
    "mlp_layout",
    "padded_inputs",
    "shrink",
    "shrink_marked",
    "train_steps",
    "train_together",
    "unit_errors",
]
