"""What is done with a task runs on a GPU, and whatever the default device is."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_envs.architecture import ArchitectureVectorEnv
from dynopt_ray import plugins
from dynopt_ray.policies import DataSizedWidths, UselessShrinking, adapt
from dynopt_ray.structure import Mask, trace
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import (
    Budget,
    Distillation,
    Fraction,
    Greedy,
    Hypergradient,
    Random,
    Regrowth,
    Retraining,
    Snapshot,
    TrainingInParts,
    allocate,
    find_rate,
    grow,
    hypergradient,
    load_optimizer_state,
    make_rate,
    optimizer_state,
    prune,
    sensitivity,
)
from tests.gpu.stand_in import stand_in

CPU = torch.device("cpu")
HAS_GPU = torch.cuda.is_available()


@contextmanager
def default_device(device: torch.device) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@cache
def rows(num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of 16 numbers, of four classes that are easily told apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, 16, generator=generator, device=CPU)
    return x, x.reshape(num_rows, 4, 4).sum(2).argmax(1)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)
    )


def small_task(device: torch.device | str) -> Task:
    train, validation = rows(320, 0), rows(160, 1)
    return Task.from_arrays(
        model=mlp, train=train, validation=validation, batch_size=64, device=device
    )


def learned(task: Task, num_steps: int = 40) -> tuple[nn.Module, Optimizer]:
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    task.train_steps(model, optimizer, num_steps, generator=torch.Generator().manual_seed(0))
    return model, optimizer


def pruned(task: Task, **options: Any) -> nn.Module:
    model, optimizer = learned(task)
    settings = {"target": Fraction(remove=0.4), "rounds": 2, "retrain": 5, **options}
    prune(model, task, optimizer=optimizer, **settings)
    return model


def grown(task: Task, **options: Any) -> nn.Module:
    model, optimizer = learned(task)
    grow(model, task, target=Budget(params=1.5), train=10, optimizer=optimizer, **options)
    return model


def adapted(task: Task, policy: Any) -> nn.Module:
    model, optimizer = learned(task)
    adapt(model, task, policy, cost_weight=0.3, horizon=3, optimizer=optimizer)
    return model


def unchanged(task: Task, work: Callable[[nn.Module, Task], object]) -> nn.Module:
    model, _ = learned(task)
    work(model, task)
    return model


def retraining(kind: str) -> Retraining:
    if kind == "distillation":
        return Retraining(6, distillation=Distillation())
    return Retraining(6, controller=partial(hypergradient, hyper_lr=0.02, multiplicative=True))


def rate_found(model: nn.Module, task: Task) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    find_rate(model, task, optimizer, num_steps=25)


WORK: dict[str, Callable[[Task], nn.Module]] = {
    **{
        f"prune units by {name}": partial(pruned, criterion=name)
        for name in plugins.names("criteria")
        if name not in ("batchnorm_scale", "lamp")
    },
    **{
        f"prune weights by {name}": partial(pruned, criterion=name, granularity="weight")
        for name in ("magnitude", "taylor", "lamp", "hessian", "gradient")
    },
    "prune by layer": partial(pruned, scope="layer", recovery=Greedy(share=0.2)),
    "prune and give back at random": partial(pruned, recovery=Random(share=0.2)),
    "prune and regrow": partial(pruned, granularity="weight", recovery=Regrowth(share=0.2)),
    "prune 2:4": partial(pruned, granularity="2:4", target=None, rounds=1),
    "prune to a budget": partial(pruned, target=Budget(flops=0.5)),
    "distil": partial(pruned, retrain=retraining("distillation")),
    "hypergradient": partial(pruned, retrain=retraining("hypergradient")),
    "grow evenly": grown,
    "grow where it helps": partial(grown, criterion="gain"),
    "allocate": partial(unchanged, work=lambda m, t: allocate(m, t, Budget(flops=0.6))),
    "sensitivity": partial(unchanged, work=lambda m, t: sensitivity(m, t, fractions=[0.5])),
    "find a rate": partial(unchanged, work=rate_found),
    "adapt widths": partial(adapted, policy=DataSizedWidths()),
    "adapt by shrinking": partial(adapted, policy=UselessShrinking()),
}


@pytest.mark.parametrize("name", WORK)
def test_work_runs_on_a_gpu_as_on_the_cpu(gpu: torch.device, name: str) -> None:
    results = []
    for device in (gpu, CPU):
        task = small_task(device)
        model = WORK[name](task)
        assert {p.device for p in model.parameters()} == {device}
        results.append((task.evaluate(model), [p.shape for p in model.parameters()]))
    (on_gpu, _), (on_cpu, _) = results
    assert on_gpu.metric == pytest.approx(on_cpu.metric, abs=0.15)
    if not HAS_GPU:
        # Without kernels that round differently, nothing may differ.
        assert results[0][1] == results[1][1]
        assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-3)


@pytest.mark.parametrize("name", WORK)
def test_the_default_device_does_not_matter(gpu: torch.device, name: str) -> None:
    task = small_task(CPU)
    with default_device(gpu):
        model = WORK[name](task)
    assert {p.device for p in model.parameters()} == {CPU}


@pytest.mark.parametrize("where", ["gpu", "cpu"])
def test_the_same_seed_gives_the_same_network(gpu: torch.device, where: str) -> None:
    """Layers are made on the default device, whose generator draws the weights."""
    task = small_task(gpu if where == "gpu" else CPU)
    with default_device(gpu):
        one = task.new_model(seed=0)
        torch.rand(3, device=gpu)
        other = task.new_model(seed=0)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_convolutions_are_trained_and_pruned(gpu: torch.device) -> None:
    task = load_task({"name": "digits-cnn", "channels": [4], "hidden": 8, "device": str(gpu)})
    model = pruned(task)
    assert task.evaluate(model).metric > 0.2
    scores = task.row_scores(model)
    assert scores is not None
    assert scores.device == CPU


def test_loaders_deliver_on_a_gpu(gpu: torch.device) -> None:
    x, y = small_task(CPU).arrays("train")
    data = torch.utils.data.TensorDataset(x, y)
    task = Task.from_loaders(
        model=lambda: nn.Linear(16, 4),
        train=torch.utils.data.DataLoader(data, batch_size=64),
        validation=[{"x": x[:50], "label": y[:50]}],
        device=gpu,
    )
    with default_device(CPU):
        model, _ = learned(task, num_steps=80)
    assert task.evaluate(model).metric > 0.5


@pytest.mark.parametrize("backend", ["population", "module"])
@pytest.mark.parametrize("default", ["gpu", "cpu"])
def test_environments_step_on_a_gpu(gpu: torch.device, backend: Any, default: str) -> None:
    observed = []
    for device in (gpu, CPU):
        task = {"name": "digits-mlp", "hidden": [8, 6], "device": str(device)}
        env = ArchitectureVectorEnv(3, task=task, backend=backend, num_starts=2, horizon=4)
        with default_device(gpu if default == "gpu" else CPU):
            env.reset(seed=0)
            for step in range(4):
                seen, *_ = env.step(np.full(3, step % 4))
        observed.append(seen["observations"])
        env.close()
    assert np.isfinite(observed[0]).all()
    # New units are drawn by the device's own generator, so that figures differ a little.
    assert np.median(np.abs(observed[0] - observed[1])) < 0.05


def test_a_snapshot_restores_everything(gpu: torch.device) -> None:
    task = small_task(gpu)
    model, optimizer = learned(task)
    graph = trace(model, task.example_inputs())
    keep = torch.arange(model.get_parameter("0.weight").numel()).reshape(12, 16) % 3 > 0
    graph.apply(Mask("0.weight", keep=keep), optimizer=optimizer)
    snapshot = Snapshot(graph, optimizer)
    first = torch.rand(3, device=gpu)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    task.train_steps(model, optimizer, 3)
    snapshot.restore()
    assert torch.equal(torch.rand(3, device=gpu), first)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    task.train_steps(model, optimizer, 3)
    assert not model.get_parameter("0.weight")[~keep.to(gpu)].any()


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.parametrize("options", [{"fused": True}, {"capturable": True}, {}])
def test_plain_state_keeps_the_implementation(gpu: torch.device, options: dict[str, Any]) -> None:
    """State travels between a GPU and the CPU, in both directions."""
    on_gpu, on_cpu = small_task(gpu), small_task(CPU)
    model = on_gpu.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, **options)
    on_gpu.train_steps(model, optimizer, 3)
    other = on_cpu.new_model(seed=0)
    plain = torch.optim.Adam(other.parameters(), lr=0.5)
    load_optimizer_state(plain, optimizer_state(optimizer))
    assert not plain.param_groups[0]["fused"]
    assert not plain.param_groups[0]["capturable"]
    assert plain.param_groups[0]["lr"] == 0.01
    on_cpu.train_steps(other, plain, 2)
    assert {v.device for s in plain.state.values() for v in s.values()} == {CPU}
    load_optimizer_state(optimizer, optimizer_state(plain))
    assert all(bool(optimizer.param_groups[0][name]) == value for name, value in options.items())
    on_gpu.train_steps(model, optimizer, 2)
    counts = {state["step"].device for state in optimizer.state.values()}
    assert counts == {gpu if options else CPU}
    assert {float(state["step"]) for state in optimizer.state.values()} == {7.0}


def test_hypergradient_is_that_of_the_cpu(gpu: torch.device) -> None:
    rates = []
    for device in (gpu, CPU):
        task = small_task(device)
        model = task.new_model(seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        Hypergradient(optimizer, hyper_lr=0.02, multiplicative=True)
        for inputs, targets in task.batches("train"):
            optimizer.zero_grad()
            loss: Any = task.loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(rates[1], rel=1e-3)
    assert rates[0] != 0.05


def linear() -> nn.Module:
    return nn.Linear(16, 4)


def test_a_pickled_task_leaves_the_device_to_who_reads_it() -> None:
    with stand_in(num_devices=2):
        on_gpu = small_task(torch.device("cuda:1"))
        batches = [*small_task(CPU).batches("validation")]
        loaded = Task.from_loaders(model=linear, train=batches, validation=batches, device="cuda:1")
        inputs, _ = next(iter(loaded.batches("train")))
        assert isinstance(inputs, Tensor)
        assert inputs.device == torch.device("cuda:1")
        content = pickle.dumps([on_gpu, loaded])
    # Without a GPU, as in a worker to which none was granted.
    for task in pickle.loads(content):
        assert task.device == CPU
        model = task.new_model(seed=0)
        task.train_steps(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
        assert task.evaluate(model).num_samples == 160
    with stand_in():
        again = pickle.loads(content)[0].to("cuda")
        assert again.device == again.arrays("train")[0].device == torch.device("cuda:0")


@pytest.mark.parametrize(
    "rate",
    [
        {"name": "cosine", "initial": 0.05},
        {"name": "hypergradient", "initial": 0.05, "hyper_lr": 0.02, "multiplicative": True},
        {"name": "plateau", "initial": 0.05},
        {"name": "population", "initial": 0.05, "num_members": 2},
    ],
    ids=lambda rate: rate["name"],
)
def test_training_continues_on_another_device(gpu: torch.device, rate: dict[str, Any]) -> None:
    def begun(device: torch.device) -> tuple[TrainingInParts, nn.Module]:
        task = small_task(device)
        model = task.new_model(seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        options = {"num_steps": 12, "num_parts": 3, "seed": 0}
        return TrainingInParts(model, task, optimizer, make_rate(rate, 12), **options), model

    whole, _ = begun(CPU)
    expected = [figures["validation_loss"] for _, figures in whole]
    parts, model = begun(gpu)
    found = [next(iter(parts))[1]["validation_loss"]]
    for device in (CPU, gpu):
        state, weights = parts.state_dict(), model.state_dict()
        parts, model = begun(device)
        model.load_state_dict(weights)
        parts.load_state_dict(state)
        found.append(next(iter(parts))[1]["validation_loss"])
    assert found == pytest.approx(expected, rel=1e-3)
