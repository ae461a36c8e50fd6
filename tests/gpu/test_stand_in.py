"""The stand-in refuses, counts and draws as CUDA does."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.gpu.stand_in import MixedDevicesError, StandIn, stand_in

GPU = "cuda:0"
NUM_GPUS = torch.cuda.device_count()


@pytest.mark.parametrize(
    ("operation", "waits", "copies"),
    [
        (lambda x: x + 1, 0, 0),
        (lambda x: x[1:3].sum(), 0, 0),
        (lambda x: x.sum().item(), 1, 0),
        (lambda x: float(x[0]), 1, 0),
        (lambda x: bool((x > 0).all()), 1, 0),
        (lambda x: x.tolist(), 1, 0),
        (lambda x: x.nonzero(), 1, 0),
        (lambda x: x[x > 1], 1, 0),
        (lambda x: x.masked_fill(x > 1, 0), 0, 0),
        (lambda x: x.__setitem__(x > 1, 0.0), 0, 0),
        (lambda x: torch.equal(x, x), 1, 0),
        (lambda x: x.cpu(), 1, 1),
        (lambda x: x.to("cpu", non_blocking=True), 0, 1),
        (lambda x: x.to(x.device), 0, 0),
        (lambda x: x.to(torch.float64), 0, 0),
        (lambda _: torch.ones(3).to(GPU), 1, 1),
        (lambda _: torch.ones(3).to(GPU, non_blocking=True), 1, 1),
        (lambda _: torch.ones(3).pin_memory().to(GPU, non_blocking=True), 0, 1),
        (lambda _: torch.tensor([1.0], device=GPU), 1, 1),
        (lambda _: torch.as_tensor(np.ones(2), device=GPU), 1, 1),
        (lambda _: torch.zeros(3, device=GPU), 0, 0),
        (lambda x: x[[0, 2]], 1, 1),
        (lambda x: x[torch.tensor([0, 2])], 1, 1),
        (lambda x: x.index_select(0, torch.arange(2, device=GPU)), 0, 0),
        (lambda x: x.copy_(torch.ones(4)), 1, 1),
        (lambda x: torch.linalg.cholesky(torch.eye(3, device=x.device)), 1, 0),
        (lambda x: torch.linalg.cholesky_ex(torch.eye(3, device=x.device)), 0, 0),
        (
            lambda x: torch.linalg.cholesky_ex(torch.eye(3, device=x.device), check_errors=True),
            1,
            0,
        ),
        (lambda _: torch.cuda.synchronize(), 1, 0),
    ],
)
def test_waits_and_copies_are_counted(
    gpus: StandIn, operation: Callable[[Tensor], object], waits: int, copies: int
) -> None:
    x = torch.arange(4.0, device=GPU)
    gpus.counts.reset()
    operation(x)
    assert (gpus.counts.num_waits, gpus.counts.copies.total()) == (waits, copies)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.ones(4).add_(x),
        lambda x: x.add_(torch.ones(4)),
        lambda x: torch.cat([x, torch.ones(4)]),
        lambda x: F.linear(x, torch.ones(2, 4)),
        lambda x: x.index_select(0, torch.arange(2)),
        lambda x: torch.where(torch.ones(4, dtype=torch.bool), x, x),
        lambda x: torch.ones(4)[x.long()],
        lambda x: x + torch.ones(4, device="cuda:1"),
        lambda x: x + torch.ones(4, device="meta"),
        lambda x: torch._foreach_add_([x], [torch.ones(4)]),
    ],
)
def test_devices_are_not_mixed(gpus: StandIn, operation: Callable[[Tensor], object]) -> None:
    x = torch.zeros(4, device=GPU)
    with pytest.raises(MixedDevicesError, match="on the same device"):
        operation(x)
    assert gpus.counts.num_waits == 0


def test_numbers_on_the_cpu_are_taken(gpus: StandIn) -> None:
    x = torch.ones(2, device=GPU)
    for result in (x * torch.tensor(2.0), torch.tensor(2.0) * x, x.fill_(torch.tensor(2.0))):
        assert result.device == torch.device(GPU)
        assert result.tolist() == [2.0, 2.0]
    assert gpus.counts.copies.total() == 0


def test_a_gpu_that_is_not_there_is_refused(gpus: StandIn) -> None:
    assert torch.cuda.device_count() == 2
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(1, device="cuda:2")
    assert gpus.counts.operations == 0


@pytest.mark.parametrize("read", [np.asarray, Tensor.numpy])
def test_numpy_cannot_read_a_gpu(gpus: StandIn, read: Callable[[Tensor], Any]) -> None:
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        read(torch.ones(2, device=GPU))
    assert gpus.counts.num_waits == 0


@pytest.mark.usefixtures("gpus")
def test_a_network_moves_in_place_and_is_copied_where_it_is() -> None:
    network: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    weight = network[0].weight
    network.to("cuda:1")
    assert network[0].weight is weight
    twin = copy.deepcopy(network)
    assert {str(t.device) for t in [*network.state_dict().values()]} == {"cuda:1"}
    assert {str(t.device) for t in [*twin.state_dict().values()]} == {"cuda:1"}
    both = copy.deepcopy([network[0].weight.detach(), torch.ones(2)])
    assert [tensor.device.type for tensor in both] == ["cuda", "cpu"]
    assert network.cpu()[0].weight.device.type == "cpu"


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
}


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_networks_train_as_on_the_cpu(gpus: StandIn, options: dict[str, Any]) -> None:
    def trained(device: str, options: dict[str, Any]) -> nn.Module:
        network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(
                    torch.linspace(-0.5, 0.6, parameter.numel()).reshape(parameter.shape)
                )
        network.to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1, **options)
        x, y = torch.linspace(-1, 1, 15).reshape(5, 3).to(device), torch.arange(5).to(device) % 2
        gpus.counts.reset()
        for _ in range(3):
            optimizer.zero_grad()
            loss: Any = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
        return network

    on_gpu, on_cpu = trained(GPU, options), trained("cpu", {})
    for one, other in zip(on_gpu.parameters(), on_cpu.parameters(), strict=True):
        assert one.grad is not None
        assert one.grad.device == one.device == torch.device(GPU)
        torch.testing.assert_close(one.cpu(), other)


def test_training_makes_nobody_wait(gpus: StandIn) -> None:
    network = nn.Linear(3, 2).to(GPU)
    optimizer = torch.optim.AdamW(network.parameters())
    x = torch.ones(5, 3, device=GPU)
    gpus.counts.reset()
    network(x).square().mean().backward()
    optimizer.step()
    assert gpus.counts.num_waits == 0
    assert gpus.counts.operations > 0


def test_a_step_count_on_the_cpu_is_refused_by_fused_kernels(gpus: StandIn) -> None:
    network = nn.Linear(3, 2).to(GPU)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    network(torch.ones(5, 3, device=GPU)).sum().backward()
    optimizer.step()
    for state in optimizer.state.values():
        state["step"] = state["step"].cpu()
    assert gpus.counts.copies["to the host"] == 2
    with pytest.raises((MixedDevicesError, AssertionError)):
        optimizer.step()


@pytest.mark.usefixtures("gpus")
def test_hooks_and_attention_see_the_gpu() -> None:
    seen = []
    attention = nn.MultiheadAttention(4, 2, batch_first=True).to(GPU)
    weight: Any = attention.in_proj_weight
    weight.register_hook(lambda g: seen.append((g.device, (g * 2).device)))
    x = torch.randn(2, 3, 4, device=GPU)
    output, _ = attention(x, x, x)
    output.sum().backward()
    assert seen == [(torch.device(GPU), torch.device(GPU))]
    recurrent = nn.LSTM(4, 3).to(GPU)
    assert recurrent(x)[0].device == torch.device(GPU)
    gradients = torch.func.vmap(torch.func.grad(lambda w, v: (w * v).sum()), (None, 0))(x[0], x)
    assert gradients.device == torch.device(GPU)


@pytest.mark.usefixtures("gpus")
def test_each_gpu_draws_from_its_own_generator() -> None:
    torch.manual_seed(3)
    first = torch.rand(2, device="cuda:1")
    torch.rand(5)
    torch.rand(5, device="cuda:0")
    second = torch.rand(2, device="cuda:1")
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2, device="cuda:1"), first)
    with torch.random.fork_rng(devices=[1]):
        torch.rand(9, device="cuda:1")
    assert torch.equal(torch.rand(2, device="cuda:1"), second)
    with pytest.raises(RuntimeError, match="for generator but found 'cpu'"):
        torch.randperm(3, generator=torch.Generator(), device="cuda")


@pytest.mark.usefixtures("gpus")
def test_the_default_device_is_followed() -> None:
    torch.set_default_device("cuda:1")
    try:
        made = [torch.zeros(2), torch.tensor([1]), torch.as_tensor(np.ones(2)), torch.rand(2)]
    finally:
        torch.set_default_device(None)
    assert {str(tensor.device) for tensor in made} == {"cuda:1"}


def test_a_pickled_tensor_wants_its_gpu() -> None:
    with stand_in(num_devices=2):
        content = pickle.dumps(torch.ones(2, device="cuda:1"))
        assert pickle.loads(content).device == torch.device("cuda:1")
    with stand_in(), pytest.raises(RuntimeError, match="device_count"):
        pickle.loads(content)


@pytest.mark.usefixtures("gpus")
def test_gradients_return_to_where_their_leaf_is() -> None:
    weight = torch.ones(2, requires_grad=True)
    total: Any = (weight.to(GPU) * 3).sum()
    total.backward()
    assert weight.grad is not None
    assert weight.grad.device.type == "cpu"
    assert weight.grad.tolist() == [3.0, 3.0]


def test_memory_ends(gpus: StandIn) -> None:
    x = torch.ones(10, device=GPU)
    with gpus.memory_of(20):
        x + 1
        with pytest.raises(torch.OutOfMemoryError):
            torch.cat([x, x, x])
    torch.cat([x, x, x])


def test_nothing_is_left_behind() -> None:
    with stand_in():
        pass
    assert "device" not in vars(Tensor)
    assert torch.cuda.device_count() == NUM_GPUS
    assert torch.ones(2).device.type == "cpu"
