"""Networks on a GPU are resized, masked, refitted, saved and loaded as those on the CPU."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from dynopt_ray.criteria import sample_gradients
from dynopt_ray.errors import EditError
from dynopt_ray.structure import (
    Graph,
    Grow,
    Insert,
    Mask,
    Shrink,
    load,
    mask_of,
    measure,
    save,
    trace,
)
from tests.gpu.stand_in import StandIn

Parameters = Iterable[nn.Parameter]

OPTIMIZERS: dict[str, Callable[[Parameters], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "loop": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
    "fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "fused-amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True, amsgrad=True),
    "capturable": lambda p: torch.optim.Adam(p, lr=1e-3, capturable=True, foreach=True),
    "capturable-nadam": lambda p: torch.optim.NAdam(p, lr=1e-3, capturable=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-3),
    "fused-adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3, fused=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
}


class Attentive(nn.Module):
    """Attention over the rows of an image, then a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(8, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        out: Tensor = self.out(self.norm(x).mean(1))
        return out


class Recurrent(nn.Module):
    """An LSTM over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.lstm(x)[0][:, -1])
        return out


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 32, 3),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (8,)),
    "cnn": (cnn, (1, 4, 8)),
    "attention": (Attentive, (4, 8)),
    "lstm": (Recurrent, (4, 8)),
}


def made(name: str, device: torch.device, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network and inputs on a device, the same on all."""
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    return make().to(device), torch.randn(16, *shape, device="cpu").to(device)


def train(model: nn.Module, optimizer: Optimizer, x: Tensor, num_steps: int = 2) -> None:
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss: Any = model(x).square().mean()
        loss.backward()
        optimizer.step()
    if x.is_cuda:
        torch.cuda.synchronize()  # so that the error of a kernel shows here


def devices_of(model: nn.Module, optimizer: Optimizer | None = None) -> set[str]:
    """The kinds of devices of everything that has as many values as a parameter may have."""
    tensors = [*model.parameters(), *model.buffers()]
    if optimizer is not None:
        states = optimizer.state.values()
        tensors += [v for s in states for v in s.values() if isinstance(v, Tensor) and v.ndim]
    return {t.device.type for t in tensors}


@pytest.mark.filterwarnings("ignore:compensate. .* cannot be refitted")
@pytest.mark.parametrize("name", NETWORKS)
def test_edits_equal_those_on_the_cpu(gpu: torch.device, name: str) -> None:
    results = []
    for device in (gpu, torch.device("cpu")):
        model, x = made(name, device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        train(model, optimizer, x)
        graph = trace(model, x)
        group = next(iter(graph)).name
        graph.apply(Shrink(group, remove=[1]), optimizer=optimizer, compensate=[x, x[:8]])
        graph.apply(Grow(group, units=2, init="split", exact=False), optimizer=optimizer)
        train(model, optimizer, x)
        assert devices_of(model, optimizer) == {device.type}
        results.append(model(x).detach().cpu())
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_follows_edits_undo_and_files(gpu: torch.device, name: str, tmp_path: Path) -> None:
    model, x = made("mlp", gpu)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, x)
    graph = trace(model, x)
    before = [p.detach().clone() for p in model.parameters()]
    graph.apply([Grow("0", units=4)], optimizer=optimizer).undo()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    graph.apply([Shrink("0", remove=[1]), Grow("2", units=2)], optimizer=optimizer)
    keep = torch.arange(88).reshape(11, 8) % 2 == 0
    graph.apply([Mask("0.weight", keep=keep)], optimizer=optimizer)
    train(model, optimizer, x)
    assert not model.get_parameter("0.weight")[~keep.to(gpu)].any()
    save(tmp_path / "network", model, optimizer)
    other, _ = made("mlp", gpu, seed=1)
    second = OPTIMIZERS[name](other.parameters())
    load(tmp_path / "network", other, second)
    for one, twin in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[one].items():
            if isinstance(value, Tensor):
                assert second.state[twin][key].device == value.device, key
    train(model, optimizer, x)
    train(other, second, x)
    for one, twin in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, twin)


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.parametrize("name", ["adam", "fused", "capturable"])
def test_a_file_from_a_gpu_is_loaded_on_the_cpu_and_back(
    gpu: torch.device, name: str, tmp_path: Path
) -> None:
    model, x = made("mlp", gpu)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, x)
    save(tmp_path / "of_gpu", model, optimizer)
    on_cpu, _ = made("mlp", torch.device("cpu"), seed=1)
    plain = torch.optim.Adam(on_cpu.parameters(), lr=1.0)
    load(tmp_path / "of_gpu", on_cpu, plain)
    assert not plain.param_groups[0]["fused"]
    assert not plain.param_groups[0]["capturable"]
    train(on_cpu, plain, x.cpu())
    save(tmp_path / "of_cpu", on_cpu, plain)
    back, _ = made("mlp", gpu, seed=2)
    again = OPTIMIZERS[name](back.parameters())
    load(tmp_path / "of_cpu", back, again)
    train(model, optimizer, x, num_steps=4)
    train(back, again, x)
    for one, other in zip(model.parameters(), back.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_mask_follows_its_parameter(gpu: torch.device) -> None:
    model, x = made("mlp", torch.device("cpu"))
    keep = torch.arange(96).reshape(12, 8) % 2 == 0
    trace(model, x).apply(Mask("0.weight", keep=keep))
    model.to(gpu)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1), x.to(gpu))
    weight = model.get_parameter("0.weight")
    assert weight.grad is not None
    assert not weight[~keep.to(gpu)].any()
    assert not weight.grad[~keep.to(gpu)].any()
    mask = mask_of(weight)
    assert mask is not None
    assert mask.device == gpu
    model.cpu()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), x)
    assert not model.get_parameter("0.weight")[~keep].any()


def test_batches_may_be_on_the_cpu(gpu: torch.device) -> None:
    model, x = made("cnn", gpu)
    graph = trace(model, x.cpu())
    receipt = graph.apply(Shrink("0", remove=[0, 3]), compensate=[x.cpu(), x])
    assert "3.weight" in receipt.refitted
    one = model(x)
    receipt.undo()
    graph.apply(Shrink("0", remove=[0, 3]), compensate=[x, x])
    torch.testing.assert_close(one, model(x), rtol=1e-3, atol=1e-4)


def test_blocks_are_inserted_where_the_network_is(gpu: torch.device) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)).to(gpu)
    x = torch.randn(4, 8, device="cpu").to(gpu)
    graph = trace(model, x)
    before = model(x)
    graph.apply(Insert(after="1", like=("1",)))
    torch.testing.assert_close(model(x), before)
    assert devices_of(model) == {"cuda"}


def test_costs_are_those_of_the_cpu(gpu: torch.device) -> None:
    on_gpu, on_cpu = (
        measure(model, x, latency=True, memory=True)
        for model, x in (made("cnn", gpu), made("cnn", torch.device("cpu")))
    )
    assert (on_gpu.params, on_gpu.flops) == (on_cpu.params, on_cpu.flops)
    assert on_gpu.activation_bytes == on_cpu.activation_bytes
    assert on_gpu.latency_ms is not None
    assert on_gpu.latency_ms > 0


class Growing(nn.Module):
    """Computes something large between two layers, and needs values to know how."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if float(x.detach().sum()) < 1e9:
            x = x + x[:, :, None].expand(-1, -1, 50).mul(2).mean(2) * 0
        out: Tensor = self.second(x)
        return out


ROOM = 2_000
"""Elements: enough for all tensors of these networks but those that `Growing` computes."""

Prepared = Callable[[nn.Module, Tensor], Callable[[], object]]


def of_graph(work: Callable[[Graph, Tensor], object]) -> Prepared:
    """Trace on a single row, for which there is enough memory, before the work."""

    def prepared(model: nn.Module, x: Tensor) -> Callable[[], object]:
        graph = trace(model, x[:1])
        return lambda: work(graph, x)

    return prepared


@pytest.mark.filterwarnings("ignore:the forward pass decides by values")
@pytest.mark.parametrize(
    "prepare",
    [
        lambda model, x: lambda: trace(model, x),
        lambda model, x: lambda: measure(model, x),
        of_graph(lambda graph, x: graph.apply(Shrink("first", remove=[0]), compensate=[x, x])),
    ],
    ids=["trace", "measure", "compensate"],
)
def test_exhausted_memory_is_not_mistaken_for_something_else(
    gpus: StandIn, prepare: Prepared
) -> None:
    model = Growing().to("cuda")
    x = torch.randn(16, 8, device="cuda")
    prepare(model, x)()
    model = Growing().to("cuda")
    work = prepare(model, x)
    before = [p.clone() for p in model.parameters()]
    with gpus.memory_of(ROOM), pytest.raises(torch.OutOfMemoryError):
        work()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    work()


def test_gradients_of_samples_do_not_hide_exhausted_memory(gpus: StandIn) -> None:
    """They are not computed one by one instead, as for networks that `vmap` cannot run."""
    model, _ = made("mlp", torch.device("cuda:0"))
    x = torch.randn(64, 8, device="cuda")
    num_calls = 0

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        nonlocal num_calls
        num_calls += 1
        return (output[:, 0] - targets).square().mean()

    with gpus.memory_of(ROOM), pytest.raises(torch.OutOfMemoryError):
        next(sample_gradients(model, [(x, x[:, 0])], loss))
    assert num_calls == 2  # of all at once, to check them, and of all samples
    with gpus.memory_of(10 * ROOM):
        found = next(sample_gradients(model, [(x, x[:, 0])], loss))
    assert {gradient.device.type for gradient in found.values()} == {"cuda"}


def graphed_forward() -> Callable[[Tensor], Tensor]:
    """What `torch.cuda.make_graphed_callables` puts in place of a module's `forward`."""

    def new_fwd(x: Tensor) -> Tensor:
        return x

    new_fwd.__module__ = torch.cuda.make_graphed_callables.__module__
    return new_fwd


def test_an_edit_within_a_captured_graph_is_refused(gpus: StandIn) -> None:
    model, x = made("mlp", torch.device("cuda:0"))
    assert isinstance(model, nn.Sequential)
    graph = trace(model, x)
    gpus.capturing = True
    with pytest.raises(EditError, match="part of a CUDA graph"):
        graph.apply(Shrink("0", remove=[0]))
    gpus.capturing = False
    model[0].forward = graphed_forward()
    with pytest.raises(EditError, match=r"^0 runs as a captured CUDA graph"):
        graph.apply(Shrink("0", remove=[0]))
    del model[0].forward
    graph.apply(Shrink("0", remove=[0]))
    assert graph.widths["0"] == 11


def test_the_default_device_does_not_matter(gpu: torch.device) -> None:
    """The data are on the CPU, and so is one of the networks."""
    for device in (gpu, torch.device("cpu")):
        model, x = made("cnn", device)
        torch.set_default_device(gpu)
        try:
            graph = trace(model, x)
            graph.apply(Shrink("0", remove=[1, 2]), compensate=[x, x])
            graph.apply([Grow("0", units=1), Grow("3", units=2, init="split")])
            keep = torch.arange(10 * 5 * 9, device="cpu").reshape(10, 5, 3, 3) > 7
            graph.apply(Mask("3.weight", keep=keep))
        finally:
            torch.set_default_device(None)
        assert devices_of(model) == {device.type}
        assert F.relu(model(x)).shape == (16, 3)
