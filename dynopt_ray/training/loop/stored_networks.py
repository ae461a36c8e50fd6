"""Networks as bytes."""

import tempfile
from pathlib import Path

from torch import nn

from dynopt_ray.structure import Graph, load, save, trace
from dynopt_ray.tasks import Task


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
