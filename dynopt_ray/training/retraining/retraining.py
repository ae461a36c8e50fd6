"""Retrain a network between edits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.schedules import Schedule, rewind, to_torch
from dynopt_ray.tasks import AddedLoss, Task, TrainStats
from dynopt_ray.training.arguments import check_callable
from dynopt_ray.training.loop import KeptOptions, Snapshot
from dynopt_ray.training.numbers import whole
from dynopt_ray.training.rates import ControllerFactory, RateController
from dynopt_ray.training.retraining.distillation import Distillation

_LR = 1e-3
_EPS, _FLOAT16_EPS = 1e-8, 1e-4

_RATE_KEYS = {"lr", "initial_lr"}


def default_optimizer(model: nn.Module) -> Optimizer:
    """Return the optimizer used if the caller gives none: Adam with learning rate 0.001."""
    is_half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    # Torch's default eps rounds to 0 in float16, and so does the square of a small gradient.
    eps = _FLOAT16_EPS if is_half else _EPS
    return torch.optim.Adam(model.parameters(), lr=_LR, eps=eps)


@dataclass(frozen=True)
class Retraining:
    """Trains a network for a number of steps, with optional checks on validation data.

    Attributes:
        num_steps: number of optimizer steps, at least 1.
        schedule: step -> learning rate; None keeps the optimizer's rate.
        controller: (network, optimizer) -> an LR controller, which sets the rate instead of a
            schedule, e.g. `Plateau` or `partial(hypergradient, hyper_lr=0.01)`. A new one is made
            for each retraining. It observes the validation loss at every check, so `Plateau` needs
            at least two checks.
        restart: whether the schedule restarts after each edit. If False, it continues through all
            rounds, as in gradual pruning during a single training. The trained weights are then
            kept even if the network was better before the retraining.
        num_checks: number of evaluations on validation data, evenly spaced. With two or more, the
            network is left in the best of the evaluated states.
        patience: number of consecutive checks without a better state after which training stops;
            None never stops early.
        distillation: also learn from the network before pruning; None disables it.

    `schedule=rewind(training_schedule, to_step=…)` retrains at the rates from the end of training.

    Raises:
        TypeError: an attribute has the wrong type.
        ValueError: a number is below 1, there are more checks than steps, there are too few checks
            for the patience, or both a schedule and a controller are given.
    """

    num_steps: int
    schedule: Schedule | None = None
    num_checks: int = 1
    patience: int | None = None
    distillation: Distillation | None = None
    restart: bool = True
    controller: ControllerFactory | None = None

    def __post_init__(self) -> None:
        whole("Retraining: num_steps", self.num_steps, least=1)
        check_callable("Retraining: schedule", self.schedule, "a function of the step, or None")
        check_callable(
            "Retraining: controller", self.controller, "a function of model and optimizer, or None"
        )
        if self.schedule is not None and self.controller is not None:
            raise ValueError("Retraining: give a schedule or a controller; both would set the rate")
        whole("Retraining: num_checks", self.num_checks, least=1)
        if self.num_checks > self.num_steps:
            raise ValueError(
                f"Retraining: {self.num_checks} checks in {self.num_steps} steps; give at most one "
                "per step"
            )
        if self.patience is not None:
            whole("Retraining: patience", self.patience, least=1)
            if self.num_checks <= self.patience:
                raise ValueError(
                    f"Retraining: patience is {self.patience}, but there are {self.num_checks} "
                    "checks; give more of them, e.g. num_checks=10"
                )
        if not isinstance(self.restart, bool):
            raise TypeError(f"Retraining: restart is {self.restart!r}; pass True or False")
        if not isinstance(self.distillation, Distillation | None):
            raise TypeError(
                f"Retraining: distillation is {self.distillation!r}; pass Distillation() or None"
            )

    def __call__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        generator: torch.Generator,
        added_loss: AddedLoss | None = None,
        num_before: int = 0,
    ) -> TrainStats:
        """Train the network, then restore the optimizer's learning rates.

        Schedules keep the ratios between the rates of parameter groups. If a schedule that ends at
        zero left its rates in place, the next one would have no ratios to keep.

        Args:
            task: what the network learns.
            model: the network.
            optimizer: the optimizer over its parameters.
            generator: draws the order of rows.
            added_loss: see `Task.train_steps`.
            num_before: number of retrainings in earlier rounds.

        Returns:
            Statistics of all steps, including those after the state that is kept.

        Raises:
            DivergedError: the loss is NaN or infinite. The message names the step.
            TypeError: `controller` did not return an LR controller.
            ValueError: the controller follows losses, but there is only one check.
        """
        schedule = self.schedule
        if schedule is not None and not self.restart:
            schedule = rewind(schedule, to_step=num_before * self.num_steps)
        rates = [KeptOptions(group, only=_RATE_KEYS) for group in optimizer.param_groups]
        controller = self._made_controller(model, optimizer)
        try:
            train = partial(
                task.train_steps,
                model,
                optimizer,
                generator=generator,
                schedule=None if schedule is None else to_torch(schedule, optimizer),
                added_loss=added_loss,
            )
            if self.num_checks == 1:
                return train(self.num_steps)
            return self._best_of(train, task, model, optimizer, controller)
        finally:
            if controller is not None:
                controller.detach()
            for group, before in zip(optimizer.param_groups, rates, strict=True):
                before.put_back(group)

    def _made_controller(self, model: nn.Module, optimizer: Optimizer) -> RateController | None:
        if self.controller is None:
            return None
        controller = self.controller(model, optimizer)
        if not isinstance(controller, RateController):
            raise TypeError(
                f"Retraining: controller gave {controller!r:.60}; it must return a RateController"
            )
        if self.num_checks == 1 and getattr(controller, "observes_losses", True):
            controller.detach()
            raise ValueError(
                f"Retraining: {type(controller).__name__} follows the validation loss, but there "
                "is only one check, at the end; give more of them, e.g. num_checks=10"
            )
        return controller

    def teacher_loss(self, model: nn.Module, task: Task) -> AddedLoss | None:
        """Return the distillation loss from the present network; None without distillation."""
        if self.distillation is None:
            return None
        return self.distillation.from_teacher(model, outputs=task.outputs)

    def _best_of(
        self,
        train: Callable[[int], TrainStats],
        task: Task,
        model: nn.Module,
        optimizer: Optimizer,
        controller: RateController | None,
    ) -> TrainStats:
        """Train in parts, evaluate after each, and restore the best of these states."""
        parts: list[TrainStats] = []
        best, best_smooth, since = Snapshot(model, optimizer), -math.inf, 0
        done = 0
        for check in range(1, self.num_checks + 1):
            end = round(self.num_steps * check / self.num_checks)
            parts.append(train(end - done))
            done = end
            metrics = task.evaluate(model)
            smooth = metrics.smooth
            if smooth > best_smooth:
                best, best_smooth, since = Snapshot(model, optimizer), smooth, 0
            else:
                since += 1
            if controller is not None:
                controller.observe(metrics.loss)
            if self.patience is not None and since >= self.patience:
                break
        if since:
            best.restore()
        return _joined(parts)


def as_retraining(name: str, value: int | Retraining | None, *, least: int) -> Retraining | None:
    """Convert an argument to a `Retraining`. If `least` is 0, None and 0 return None.

    Raises:
        TypeError: the value is neither a number of steps nor a `Retraining`.
        ValueError: the number of steps is below `least`.
    """
    if isinstance(value, Retraining) or (value is None and not least):
        return value
    try:
        num_steps = whole(name, value, least=least)
    except TypeError as error:
        raise TypeError(
            f"{name} is {value!r}; pass a number of steps or Retraining(100)"
        ) from error
    return Retraining(num_steps) if num_steps else None


def _joined(parts: Sequence[TrainStats]) -> TrainStats:
    """Combine the statistics of consecutive parts of a training."""
    num_steps = sum(part.num_steps for part in parts)
    return TrainStats(
        mean_loss=math.fsum(part.mean_loss * part.num_steps for part in parts) / num_steps,
        last_loss=parts[-1].last_loss,
        num_steps=num_steps,
        num_samples=sum(part.num_samples for part in parts),
    )
