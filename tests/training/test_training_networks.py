"""Networks as bytes."""

import pytest

from dynopt_ray.errors import CheckpointError
from dynopt_ray.tasks import Task
from dynopt_ray.training.loop.stored_networks import loaded_network, network_bytes, restored


def test_networks_survive_the_journey(blobs: Task) -> None:
    network = network_bytes(blobs.new_model(seed=1))
    model = loaded_network(blobs, network)
    assert network_bytes(model) == network
    with pytest.raises(CheckpointError, match="truncated"):
        restored(blobs.new_model(seed=0), network[:-10])
