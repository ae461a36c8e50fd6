"""How often the host waits for the GPU: per training step, environment step, event and edit."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynopt_envs.architecture import ArchitectureVectorEnv
from dynopt_ray.criteria import unit_scores, weight_scores
from dynopt_ray.online import Guard, OnlineLearner
from dynopt_ray.policies import DEFAULT_ACTIONS
from dynopt_ray.structure import Grow, Mask, Shrink, masked_ridge_solve, ridge_solve, trace
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import Hypergradient
from dynopt_ray.transfers import read_numbers, read_together, to_device
from tests.gpu.stand_in import StandIn
from tests.gpu.waits import Run, wait_counter

NUM_STEPS = 10
NAMES = {action.label: place for place, action in enumerate(DEFAULT_ACTIONS)}

Waits = Callable[[Run], int]


@pytest.fixture(params=["stand_in", pytest.param("real", marks=pytest.mark.cuda)])
def waits(request: pytest.FixtureRequest) -> Iterator[Waits]:
    """Runs something and returns how often the host waited."""
    with wait_counter(real=request.param == "real") as count:
        yield count


def task_on(device: str) -> Task:
    return load_task({"name": "digits-mlp", "hidden": [16, 12]}).to(device)


def loader_task(device: str) -> Task:
    task = task_on("cpu")
    return Task.from_loaders(
        model=task.model,
        train=list(task.batches("train")),
        validation=list(task.batches("validation")),
        device=device,
    )


@pytest.mark.parametrize("make", [task_on, loader_task])
def test_a_training_step_waits_once(waits: Waits, make: Callable[[str], Task]) -> None:
    task = make("cuda")
    model = task.new_model(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    assert waits(lambda: task.train_steps(model, optimizer, NUM_STEPS)) <= NUM_STEPS
    assert waits(lambda: task.evaluate(model)) == 1


@pytest.mark.parametrize("multiplicative", [False, True])
def test_a_hypergradient_waits_once_more(waits: Waits, multiplicative: bool) -> None:
    task = task_on("cuda")
    model = task.new_model(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    Hypergradient(optimizer, hyper_lr=1e-4, multiplicative=multiplicative)
    assert waits(lambda: task.train_steps(model, optimizer, NUM_STEPS)) <= 2 * NUM_STEPS


def environment(num_members: int, backend: Any, device: str = "cuda") -> ArchitectureVectorEnv:
    env = ArchitectureVectorEnv(
        num_members,
        task=task_on(device),
        backend=backend,
        num_starts=2,
        start_steps=NUM_STEPS,
        train_steps=NUM_STEPS,
    )
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("action", ["keep", "grow", "shrink", "prune"])
def test_a_step_of_stacked_environments_waits_twice_however_many_they_are(
    waits: Waits, action: str
) -> None:
    found = []
    for num_members in (2, 9):
        env = environment(num_members, "population")
        env.step(np.full(num_members, NAMES["prune"]))  # so that a shrink meets masked weights
        env.step(np.full(num_members, NAMES["prune"]))
        actions = np.full(num_members, NAMES[action])
        found.append(waits(lambda env=env, actions=actions: env.step(actions)))  # type: ignore[misc]
    assert found[0] == found[1] <= 2


def test_a_step_of_single_environments_waits_twice_apart_from_their_training(waits: Waits) -> None:
    for num_members in (1, 3):
        env = environment(num_members, "module")
        actions = np.full(num_members, NAMES["keep"])
        num_waits = waits(lambda env=env, actions=actions: env.step(actions))  # type: ignore[misc]
        assert num_waits <= num_members * NUM_STEPS + 2


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("actions", [["shrink"] * 4, ["prune", "prune", "shrink", "shrink"]])
def test_stacked_environments_do_on_a_gpu_what_they_do_on_the_cpu(actions: list[str]) -> None:
    """Refits search for a ridge in another way there, and solve masked layers in another way."""
    envs = [environment(3, "population", device) for device in ("cpu", "cuda")]
    for action in actions:
        seen = [env.step(np.full(3, NAMES[action]))[0]["observations"] for env in envs]
        np.testing.assert_allclose(seen[1], seen[0], rtol=1e-4, atol=1e-4)


EVENTS = [
    (np.linspace(-1, 1, 4, dtype=np.float32) * np.float32(number % 7), number % 3)
    for number in range(2 * NUM_STEPS)
]


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize(("guard", "most"), [(None, 1), (Guard(window=8), 2)])
def test_an_online_event_waits_once_and_once_more_with_a_guard(
    waits: Waits, guard: Guard | None, most: int, numbers: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1 if numbers else 3)).to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = "mse" if numbers else "cross_entropy"
    learner = OnlineLearner(model, optimizer, loss=loss, guard=guard)
    verdicts = []

    def learn() -> None:
        for x, y in EVENTS[NUM_STEPS:]:
            result = learner.learn(x, [float(y)] if numbers else y)
            verdicts.append(result.verdict)

    for x, y in EVENTS[:NUM_STEPS]:
        learner.learn(x, [float(y)] if numbers else y)
    assert waits(learn) <= most * NUM_STEPS
    assert verdicts == ["accepted"] * NUM_STEPS


@pytest.mark.parametrize("bad", [(np.full(4, np.nan, np.float32), 1), (EVENTS[1][0], 7)])
def test_bad_events_are_found_on_the_host(waits: Waits, bad: tuple[Any, int]) -> None:
    model = nn.Linear(4, 3).to("cuda")
    learner = OnlineLearner(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    learner.learn(*EVENTS[1])
    results: list[Any] = []
    assert waits(lambda: results.append(learner.learn(*bad))) <= 2
    assert len(results[0].rejected) == 1


def cnn() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (3, 8, 8):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize(("kind", "most"), [("grow", 2), ("shrink", 1)])
def test_an_edit_waits_as_often_for_many_groups_as_for_one(
    waits: Waits, kind: str, most: int
) -> None:
    """Once for the costs, and once for the proof that growth is exact."""
    x = torch.randn(2, 3, 8, 8, device="cuda")
    graph = trace(cnn().to("cuda"), x)
    plan = [Grow(g.name, 2) if kind == "grow" else Shrink(g.name, remove=[1, 3]) for g in graph]
    assert waits(lambda: graph.apply(plan)) <= most


def test_a_compensated_cut_waits_for_each_layer_and_ridge_not_for_each_batch(waits: Waits) -> None:
    found = []
    for num_batches in (2, 4):
        batches = [torch.randn(16, 3, 8, 8, device="cuda") for _ in range(num_batches)]
        graph = trace(cnn().to("cuda"), batches[0])
        plan = [Shrink(g.name, remove=[1, 3]) for g in graph]
        found.append(
            waits(lambda g=graph, p=plan, b=batches: g.apply(p, compensate=b))  # type: ignore[misc]
        )
    # One for the costs; for each of three layers, its finite rows, at most 9 ridges and the fit.
    assert max(found) <= 1 + 3 * 11


@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_elimination_by_reconstruction_does_not_wait_in_every_step(
    waits: Waits, granularity: str
) -> None:
    score: Any = unit_scores if granularity == "unit" else weight_scores
    found = []
    for width in (6, 24):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3)).to("cuda")
        x = torch.randn(32, 5, device="cuda")
        graph = trace(model, x)
        batches = [(x, torch.arange(32, device="cuda") % 3)]
        found.append(
            waits(
                lambda g=graph, b=batches: score(  # type: ignore[misc]
                    g, "reconstruction", b, loss=nn.functional.cross_entropy
                )
            )
        )
    assert found[0] == found[1]


def test_masks_wait_once_for_each_parameter_at_most(gpus: StandIn) -> None:
    graph = trace(cnn().to("cuda"), torch.randn(2, 3, 8, 8, device="cuda"))
    keeps = {n: p.abs() > p.abs().mean() for n, p in graph.model.named_parameters() if p.ndim > 1}
    gpus.counts.reset()
    graph.apply([Mask(name, keep=keep) for name, keep in keeps.items()])
    assert gpus.counts.num_waits <= 3 * len(keeps) + 1


def test_values_of_many_kinds_are_read_at_once(gpus: StandIn) -> None:
    values = [
        torch.tensor([[0.1, -2.5]], dtype=torch.float32),
        torch.tensor(2**40 + 1),
        torch.tensor([True, False]),
        torch.tensor(1 / 3, dtype=torch.float64),
        torch.tensor([0.7, 1e-4], dtype=torch.bfloat16),
        torch.empty(0),
    ]
    there = [to_device(value, torch.device("cuda:1")) for value in values]
    assert gpus.counts.num_waits == 0
    found = read_together([*there, torch.ones(3)])
    assert gpus.counts.num_waits == 1
    for one, other in zip(found, [*values, torch.ones(3)], strict=True):
        assert one.device.type == "cpu"
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert read_numbers([there[1], values[3]]) == [2**40 + 1, 1 / 3]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.usefixtures("gpus")
def test_a_regression_that_is_not_read_says_whether_it_was_solved(device: str) -> None:
    cross = torch.ones(2, 1, 2, dtype=torch.float64, device=device)
    solvable = torch.eye(2, dtype=torch.float64, device=device).expand(2, 2, 2).clone()
    indefinite = solvable.clone()
    indefinite[1, 0, 0] = -3.0
    kept = torch.ones(2, 1, 2, dtype=torch.bool, device=device)
    solve: Any
    for solve in (ridge_solve, lambda c, s, **k: masked_ridge_solve(c, s, kept, **k)):
        for second, wanted in ((solvable, True), (indefinite, False), (solvable / 0, False)):
            solved: list[Tensor] = []
            solve(cross, second, solved=solved)
            assert all(map(bool, solved)) is wanted
