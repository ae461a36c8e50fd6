"""Retraining between edits."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.schedules import Schedule
from dynopt_ray.tasks import Task, TrainStats
from dynopt_ray.training.arguments import check_callable, whole

DEFAULT_LR = 1e-3
"""The rate of the Adam that trains where the caller brings no optimizer."""

_RATE_KEYS = ("lr", "initial_lr")


@dataclass(frozen=True)
class Retraining:
    """Some optimizer steps on a task's training data.

    Attributes:
        num_steps: how many, at least 1.
        schedule: the learning rate, from its step 0 on each time; None keeps the optimizer's.

    Raises:
        TypeError: steps that are no whole number, or no schedule.
        ValueError: fewer steps than 1.
    """

    num_steps: int
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        whole("Retraining: num_steps", self.num_steps, least=1)
        check_callable("Retraining: schedule", self.schedule, "a function of the step, or None")

    def __call__(
        self, task: Task, model: nn.Module, optimizer: Optimizer, *, generator: torch.Generator
    ) -> TrainStats:
        """Train; the optimizer's learning rates are afterwards what they were.

        A schedule that ends at zero would otherwise leave the next one no rates to keep the
        ratio of.

        Raises:
            DivergedError: the loss is NaN or infinite, with the step.
        """
        rates = [
            {key: copy.copy(group[key]) for key in _RATE_KEYS if key in group}
            for group in optimizer.param_groups
        ]
        try:
            return task.train_steps(
                model, optimizer, self.num_steps, generator=generator, schedule=self.schedule
            )
        finally:
            for group, before in zip(optimizer.param_groups, rates, strict=True):
                group.update(before)
                for added in set(_RATE_KEYS) - before.keys():
                    group.pop(added, None)
