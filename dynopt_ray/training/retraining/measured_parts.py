"""Train in parts, with a measurement after each part."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynopt_ray.errors import DivergedError
from dynopt_ray.schedules import to_torch
from dynopt_ray.tasks import Task
from dynopt_ray.training.loop import (
    RandomStream,
    copied,
    load_optimizer_state,
    optimizer_state,
)
from dynopt_ray.training.rates import Rate


class TrainingInParts:
    """Trains a network in parts. Iterating trains the next part and gives measurements after it.

    Each item is (number of steps so far, {"loss", "lr", "validation_loss", "accuracy"}): the mean
    training loss and the last learning rate of the part, and then the validation loss and the
    task's metric on validation data after it. Iterating raises a `DivergedError`, which says after
    how many steps, if the loss is NaN or infinite.

    Args:
        model: the network, which is trained in place.
        task: what it learns.
        optimizer: the optimizer over the network's parameters.
        rate: the learning rate. A controller observes the validation loss of each part, and a
            population selects its members by it. For a population, the measurements are those of
            the best member, whose weights the network gets at the end.
        num_steps: total number of optimizer steps.
        num_parts: number of parts of nearly equal length. At most `num_steps` parts are made.
        seed: seed of the order of training rows, and of what layers such as dropout draw.
        batch_size: rows per batch. None takes the task's.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: Optimizer,
        rate: Rate,
        *,
        num_steps: int,
        num_parts: int,
        seed: int,
        batch_size: int | None = None,
    ) -> None:
        self._task = task
        self._rate = rate
        self._scheduler = None if rate.schedule is None else to_torch(rate.schedule, optimizer)
        self._controller = rate.controller and rate.controller(model, optimizer)
        self._population = rate.population(model, optimizer) if rate.population else None
        pairs = self._population.members if self._population else [(model, optimizer)]
        self._members = [(*pair, torch.Generator().manual_seed(seed)) for pair in pairs]
        self._random = RandomStream(model, seed)
        self._batch_size = batch_size
        self._num_steps = num_steps
        self._num_parts = min(num_parts, num_steps)
        self._part = 0

    def __iter__(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train the parts that are left."""
        try:
            while self._part < self._num_parts:
                yield self._trained_part()
        finally:
            if self._controller is not None:
                self._controller.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the training needs to continue, as plain data and tensors."""
        parts = (self._scheduler, self._controller, self._population)
        return {
            "part": self._part,
            "random": self._random.state_dict(),
            "members": [
                {
                    "model": {name: copied(value) for name, value in model.state_dict().items()},
                    "optimizer": optimizer_state(optimizer),
                    "generator": generator.get_state(),
                }
                for model, optimizer, generator in self._members
            ],
            "rate": [None if part is None else part.state_dict() for part in parts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the training whose `state_dict` this is.

        The networks must have the same widths. A learning rate that follows a schedule is that of
        this training's schedule, which may be another one.
        """
        self._part = state["part"]
        self._random.load_state_dict(state["random"])
        for (model, optimizer, generator), saved in zip(
            self._members, state["members"], strict=True
        ):
            model.load_state_dict(saved["model"])
            load_optimizer_state(optimizer, saved["optimizer"])
            generator.set_state(saved["generator"])
        parts = (self._scheduler, self._controller, self._population)
        for part, saved in zip(parts, state["rate"], strict=True):
            if part is not None and saved is not None:
                part.load_state_dict(saved)
        if self._scheduler is not None:
            self._scheduler.set_rates()

    @property
    def learner(self) -> tuple[nn.Module, Optimizer, torch.Generator]:
        """The network, its optimizer and the generator of the order of rows.

        With them, somebody else may train the next part; see `next_part` and `finish_part`.
        """
        return self._members[0]

    @property
    def batch_size(self) -> int | None:
        """Rows per batch; None is the task's."""
        return self._batch_size

    def next_part(self) -> list[float]:
        """Return the learning rate of each step of the next part; none if all is done.

        Raises:
            ValueError: the rate does not follow a schedule, or is negative or not finite.
        """
        if self._rate.schedule is None:
            raise ValueError("only training whose rate follows a schedule can be done elsewhere")
        if self._part == self._num_parts:
            return []
        steps = range(self._steps(self._part), self._steps(self._part + 1))
        rates = [float(self._rate.schedule(step)) for step in steps]
        if not all(0 <= rate < math.inf for rate in rates):
            raise ValueError(f"{self._rate.schedule!r} returns rates that are negative or infinite")
        return rates

    def finish_part(
        self, *, loss: float, validation_loss: float, accuracy: float
    ) -> tuple[int, dict[str, float]]:
        """Note that the next part was trained elsewhere, and return what iterating would give."""
        rate = self.next_part()[-1]
        self._part += 1
        end = self._steps(self._part)
        if self._scheduler is not None:
            now = {"last_epoch": end, "step_count": end + 1}
            self._scheduler.load_state_dict({**self._scheduler.state_dict(), **now})
        figures = {"validation_loss": validation_loss, "accuracy": accuracy}
        return end, {"loss": loss, "lr": rate, **figures}

    @property
    def progress(self) -> str:
        """How many steps are done, for messages."""
        return f"after {self._steps(self._part)} of {self._num_steps} steps"

    def _trained_part(self) -> tuple[int, dict[str, float]]:
        done = self._steps(self._part)
        end = self._steps(self._part + 1)
        try:
            with self._random():
                found = [
                    _trained(self._task, *member, end - done, self._scheduler, self._batch_size)
                    for member in self._members
                ]
        except DivergedError as error:
            raise DivergedError(f"{self.progress}: {error}") from error
        self._part += 1
        losses = [figures["validation_loss"] for figures in found]
        figures = found[losses.index(min(losses))]
        if self._rate.schedule is not None:
            figures["lr"] = float(self._rate.schedule(end - 1))
        if self._controller is not None:
            self._controller.observe(min(losses))
        if self._population is not None and self._part < self._num_parts:
            self._population.observe(losses)
        elif self._population is not None:
            self._population.copy(losses.index(min(losses)), 0)
        return end, figures

    def _steps(self, num_parts: int) -> int:
        """Return the number of steps after some parts."""
        return round(self._num_steps * num_parts / self._num_parts)


def _trained(
    task: Task,
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    num_steps: int,
    scheduler: LRScheduler | None,
    batch_size: int | None,
) -> dict[str, float]:
    """Train one network for one part and return its measurements."""
    stats = task.train_steps(
        model,
        optimizer,
        num_steps,
        batch_size=batch_size,
        generator=generator,
        schedule=scheduler,
    )
    metrics = task.evaluate(model)
    return {
        "loss": stats.mean_loss,
        "lr": float(optimizer.param_groups[0]["lr"]),
        "validation_loss": metrics.loss,
        "accuracy": metrics.metric,
    }
