"""Train in parts, with a measurement after each part."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynopt_ray.errors import DivergedError
from dynopt_ray.schedules import to_torch
from dynopt_ray.tasks import Task
from dynopt_ray.training.rates import Rate


def trained_in_parts(
    model: nn.Module,
    task: Task,
    optimizer: Optimizer,
    rate: Rate,
    *,
    num_steps: int,
    num_parts: int,
    seed: int,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train a network in parts and yield measurements after each part.

    Args:
        model: the network, which is trained in place.
        task: what it learns.
        optimizer: the optimizer over the network's parameters.
        rate: the learning rate. A controller observes the validation loss of each part, and a
            population selects its members by it. For a population, the measurements are those of
            the best member, whose weights the network gets at the end.
        num_steps: total number of optimizer steps.
        num_parts: number of parts of nearly equal length. At most `num_steps` parts are made.
        seed: seed of the order of training rows.

    Yields:
        (number of steps so far, {"loss", "lr", "validation_loss", "accuracy"}): the mean training
        loss and the last learning rate of the part, and then the validation loss and the task's
        metric on validation data after it.

    Raises:
        DivergedError: the loss is NaN or infinite. The message says after how many steps.
    """
    scheduler = None if rate.schedule is None else to_torch(rate.schedule, optimizer)
    controller = rate.controller and rate.controller(model, optimizer)
    population = rate.population(model, optimizer) if rate.population else None
    pairs = population.members if population else [(model, optimizer)]
    members = [(*pair, torch.Generator().manual_seed(seed)) for pair in pairs]
    num_parts, done = min(num_parts, num_steps), 0
    try:
        for part in range(1, num_parts + 1):
            end = round(num_steps * part / num_parts)
            try:
                found = [_trained(task, *member, end - done, scheduler) for member in members]
            except DivergedError as error:
                raise DivergedError(f"after {done} of {num_steps} steps: {error}") from error
            done = end
            losses = [figures["validation_loss"] for figures in found]
            figures = found[losses.index(min(losses))]
            if rate.schedule is not None:
                figures["lr"] = float(rate.schedule(done - 1))
            if controller is not None:
                controller.observe(min(losses))
            if population is not None and part < num_parts:
                population.observe(losses)
            elif population is not None:
                population.copy(losses.index(min(losses)), 0)
            yield done, figures
    finally:
        if controller is not None:
            controller.detach()


def _trained(
    task: Task,
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    num_steps: int,
    scheduler: LRScheduler | None,
) -> dict[str, float]:
    """Train one network for one part and return its measurements."""
    stats = task.train_steps(model, optimizer, num_steps, generator=generator, schedule=scheduler)
    metrics = task.evaluate(model)
    return {
        "loss": stats.mean_loss,
        "lr": float(optimizer.param_groups[0]["lr"]),
        "validation_loss": metrics.loss,
        "accuracy": metrics.metric,
    }
