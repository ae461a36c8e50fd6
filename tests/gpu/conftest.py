"""Each test here runs on a stand-in for a GPU and, marked `cuda`, on a real one if there is one."""

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.stand_in import StandIn, stand_in

HAS_GPU = torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    for item in items:
        if item.get_closest_marker("cuda") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture(params=["stand_in", pytest.param("real", marks=pytest.mark.cuda)])
def gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of a GPU, first of a stand-in, then a real one."""
    if request.param == "real":
        yield torch.device("cuda", 0)
        return
    with stand_in():
        yield torch.device("cuda", 0)


@pytest.fixture
def gpus() -> Iterator[StandIn]:
    """A stand-in machine with two GPUs, which counts waits and copies."""
    with stand_in(num_devices=2) as machine:
        yield machine
