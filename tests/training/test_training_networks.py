"""Networks as bytes, and training in parts."""

import subprocess
import sys

import pytest
import torch

from dynopt_ray.errors import CheckpointError
from dynopt_ray.schedules import constant
from dynopt_ray.tasks import Task
from dynopt_ray.training.config import Rate, make_optimizer
from dynopt_ray.training.networks import loaded_network, network_bytes, restored, trained_in_parts


def test_networks_survive_the_journey(blobs: Task) -> None:
    network = network_bytes(blobs.new_model(seed=1))
    model = loaded_network(blobs, network)
    assert network_bytes(model) == network
    with pytest.raises(CheckpointError):
        restored(blobs.new_model(seed=0), network[:-10])


def test_training_in_parts_is_even_and_seeded(blobs: Task) -> None:
    def run() -> tuple[list[int], torch.Tensor]:
        model = blobs.new_model(seed=0)
        optimizer = make_optimizer("sgd", model, lr=0.1)
        parts = trained_in_parts(
            model, blobs, optimizer, Rate(0.1, constant(0.1)), num_steps=10, num_parts=4, seed=0
        )
        steps = [step for step, _ in parts]
        return steps, next(model.parameters()).detach().clone()

    steps, weights = run()
    assert steps == [2, 5, 8, 10]
    assert torch.equal(weights, run()[1])


def test_ray_is_not_needed() -> None:
    code = "import sys, dynopt_ray.training.networks; print('ray' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
