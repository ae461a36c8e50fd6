"""Convert networks to bytes and back, to send them to workers."""

import tempfile
from pathlib import Path

from torch import nn

from dynopt_ray.structure import Graph, load, save, trace
from dynopt_ray.tasks import Task


def network_bytes(model: nn.Module) -> bytes:
    """Return a network of any widths as the bytes that `structure.save` writes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "network.safetensors"
        save(path, model)
        return path.read_bytes()


def loaded_network(task: Task, network: bytes) -> nn.Module:
    """Return the network that `network_bytes` converted, on the task's device.

    Raises:
        CheckpointError: the bytes are damaged or do not hold a network of this task.
    """
    return restored(task.new_model(seed=0), network)


def restored(model: nn.Module, network: bytes) -> nn.Module:
    """Turn a newly made network, in place, into the one that `network_bytes` converted.

    Raises:
        CheckpointError: the bytes are damaged or do not hold such a network.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "network.safetensors"
        path.write_bytes(network)
        load(path, model)
    return model


def traced(task: Task, model: nn.Module) -> Graph:
    """Trace a network with the example inputs of its task and return its graph."""
    return trace(model, task.example_inputs())
