"""Count how often the host waits for the GPU: per training step, environment step, event and edit.

With a GPU, torch reports the waits (`torch.cuda.set_sync_debug_mode`). Without one, the stand-in
of the tests counts them. `python -m experiments.benchmarks.device_waits CHECKOUT` also counts the
waits of another version of this repository and prints both.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from dynopt_envs.architecture import ArchitectureVectorEnv
from dynopt_ray.online import Guard, OnlineLearner
from dynopt_ray.policies import DEFAULT_ACTIONS
from dynopt_ray.structure import Graph, Grow, Mask, Shrink, trace
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import Fraction, Greedy, Hypergradient, prune
from tests.gpu.waits import wait_counter

NUM_STEPS = 20
_TASK = {"name": "digits-mlp", "hidden": [16, 12], "device": "cuda"}

Run = Callable[[], object]
"""What is counted. Everything that it needs is made before."""


def training() -> Iterator[tuple[str, Run, int]]:
    """Yield training steps on arrays and loaders, with the number of steps of each."""
    task = load_task(_TASK)
    for name, source, rate in (
        ("arrays", task, False),
        ("arrays, Hypergradient", task, True),
        ("a loader", _of_loader(task), False),
    ):
        model = source.new_model(seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        if rate:
            Hypergradient(optimizer, hyper_lr=1e-4)

        def run(
            source: Task = source, model: nn.Module = model, optimizer: Any = optimizer
        ) -> object:
            return source.train_steps(model, optimizer, NUM_STEPS)

        run()
        yield f"training step, {name}", run, NUM_STEPS
        yield f"evaluation, {name}", lambda s=source, m=model: s.evaluate(m), 1


def _of_loader(task: Task) -> Task:
    """Return a task whose batches come from the host."""
    batches = {
        split: [(x, y) for x, y in task.to("cpu").batches(split)]
        for split in ("train", "validation")
    }
    return Task.from_loaders(model=task.model, **batches, device="cuda")


def environment() -> Iterator[tuple[str, Run, int]]:
    """Yield steps of environments, by backend, number of members and action."""
    for backend, num_members in (("population", 4), ("population", 32), ("module", 4)):
        for place, label in enumerate(DEFAULT_ACTIONS.labels):
            if label == "stop":
                continue
            env = ArchitectureVectorEnv(
                num_members, task=_TASK, backend=backend, num_starts=2, start_steps=NUM_STEPS
            )
            env.reset(seed=0)
            env.step(np.zeros(num_members, dtype=np.int64))  # what happens once has happened
            actions = np.full(num_members, place)
            name = f"environment step, {backend}, {num_members} members, {label}"
            yield name, lambda e=env, a=actions: e.step(a), 1


def online() -> Iterator[tuple[str, Run, int]]:
    """Yield events of online learners."""
    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(size=(2 * NUM_STEPS, 4)).astype(np.float32),
        rng.integers(3, size=2 * NUM_STEPS),
    )
    events = list(zip(x, y.tolist(), strict=True))
    for name, guard, numbers in (
        ("labels", None, False),
        ("labels, guard", Guard(), False),
        ("numbers, guard", Guard(), True),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1 if numbers else 3))
        model.to("cuda")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        loss = "mse" if numbers else "cross_entropy"
        learner = OnlineLearner(model, optimizer, guard=guard, loss=loss)

        def learn(
            some: list[Any], learner: OnlineLearner = learner, numbers: bool = numbers
        ) -> None:
            for event, label in some:
                learner.learn(event, [float(label)] if numbers else label)

        learn(events[:NUM_STEPS])
        yield f"online event, {name}", lambda f=learn: f(events[NUM_STEPS:]), NUM_STEPS


def edits() -> Iterator[tuple[str, Run, int]]:
    """Yield edits of a CNN and prunes."""
    inputs = [torch.randn(32, 3, 8, 8, device="cuda") for _ in range(2)]
    for name, edit in (
        ("grow", lambda graph: graph.apply([Grow(g.name, 2) for g in graph])),
        ("shrink", lambda graph: graph.apply(_shrinks(graph))),
        ("shrink, compensated", lambda graph: graph.apply(_shrinks(graph), compensate=inputs)),
        ("mask", lambda graph: graph.apply(_masks(graph))),
        ("mask, compensated", lambda graph: graph.apply(_masks(graph), compensate=inputs)),
    ):
        graph = trace(_cnn(), inputs[0])
        yield f"edit of 5 groups, {name}", lambda e=edit, g=graph: e(g), 1
    for name, options in (
        ("magnitude", {"criterion": "magnitude"}),
        ("reconstruction", {"criterion": "reconstruction"}),
        ("magnitude, greedy recovery", {"criterion": "magnitude", "recovery": Greedy(share=0.1)}),
        ("weights, magnitude", {"criterion": "magnitude", "granularity": "weight"}),
    ):
        task = load_task(_TASK)
        yield f"prune without retraining, {name}", _prune(task, options), 1


def _prune(task: Task, options: Mapping[str, Any]) -> Run:
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    task.train_steps(model, optimizer, NUM_STEPS)
    target = Fraction(remove=0.4)
    return lambda: prune(
        model, task, target=target, rounds=2, retrain=0, optimizer=optimizer, **options
    )


def _cnn() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, 8, 8, 8, 8), (8, 8, 8, 8, 8), strict=True):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(*layers).to("cuda")


def _shrinks(graph: Graph) -> list[Shrink]:
    return [Shrink(group.name, remove=[1, 3]) for group in graph]


def _masks(graph: Graph) -> list[Mask]:
    parameters = graph.model.named_parameters()
    return [Mask(n, keep=p.abs() > p.abs().mean()) for n, p in parameters if p.ndim > 1]


def counted() -> dict[str, float]:
    """Return the mean number of waits of everything that is counted, by name."""
    result = {}
    with wait_counter(real=torch.cuda.is_available()) as waits:
        for cases in (training, environment, online, edits):
            for name, run, number in cases():
                result[name] = waits(run) / number
    return result


def main() -> None:
    """Print the table of waits."""
    if sys.argv[1:] == ["--json"]:
        print(json.dumps(counted()))
        return
    # A checkout of another version may lack it.
    from experiments.benchmarks.environments import run_from

    checkouts = [Path(argument).resolve() for argument in sys.argv[1:]]
    columns = [run_from(checkout, "device_waits", "--json") for checkout in checkouts]
    now = counted()
    table = Table("what", *map(str, checkouts), "now", title="Waits of the host for the GPU")
    for name, figure in now.items():
        table.add_row(name, *(f"{column[name]:.4g}" for column in columns), f"{figure:.4g}")
    Console().print(table)


if __name__ == "__main__":
    main()
