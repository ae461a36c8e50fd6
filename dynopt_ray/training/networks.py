"""Networks as bytes, and training in parts with a measurement after each."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import DivergedError
from dynopt_ray.schedules import to_torch
from dynopt_ray.structure import Graph, trace
from dynopt_ray.structure.checkpoint import load, save
from dynopt_ray.tasks import Task
from dynopt_ray.training.config import Rate


def network_bytes(model: nn.Module) -> bytes:
    """A network of any widths as `structure.save` writes it, to send to workers."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "network.safetensors"
        save(path, model)
        return path.read_bytes()


def loaded_network(task: Task, network: bytes) -> nn.Module:
    """The network that `network_bytes` was given, on the task's device.

    Raises:
        CheckpointError: the bytes are damaged or are not of a network of this task.
    """
    return restored(task.new_model(seed=0), network)


def restored(model: nn.Module, network: bytes) -> nn.Module:
    """A freshly made network as the one that `network_bytes` was given; changed in place.

    Raises:
        CheckpointError: the bytes are damaged or are not of such a network.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "network.safetensors"
        path.write_bytes(network)
        load(path, model)
    return model


def traced(task: Task, model: nn.Module) -> Graph:
    """The graph of a task's network."""
    return trace(model, task.example_inputs())


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
    """Train; after each part, the steps so far and the figures.

    Args:
        model: trained in place.
        task: what it learns.
        optimizer: over its parameters.
        rate: the learning rate; a controller observes the validation loss of each part.
        num_steps: optimizer steps in all.
        num_parts: parts, as even as may be; no more than steps.
        seed: of the order of training rows.

    Yields:
        (steps so far, {"loss", "lr", "validation_loss", "accuracy"}): the mean training loss and
        the last rate of the part, and the task's metric on validation data after it.

    Raises:
        DivergedError: the loss is NaN or infinite; says after how many steps.
    """
    generator = torch.Generator().manual_seed(seed)
    schedule = rate.schedule
    scheduler = None if schedule is None else to_torch(schedule, optimizer)
    controller = rate.controller and rate.controller(model, optimizer)
    num_parts, done = min(num_parts, num_steps), 0
    try:
        for part in range(1, num_parts + 1):
            end = round(num_steps * part / num_parts)
            try:
                stats = task.train_steps(
                    model, optimizer, end - done, generator=generator, schedule=scheduler
                )
                metrics = task.evaluate(model)
            except DivergedError as error:
                raise DivergedError(f"after {done} of {num_steps} steps: {error}") from error
            done = end
            lr = schedule(done - 1) if schedule else optimizer.param_groups[0]["lr"]
            if controller is not None:
                controller.observe(metrics.loss)
            yield (
                done,
                {
                    "loss": stats.mean_loss,
                    "lr": float(lr),
                    "validation_loss": metrics.loss,
                    "accuracy": metrics.metric,
                },
            )
    finally:
        if controller is not None:
            controller.detach()
