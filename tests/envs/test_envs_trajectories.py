"""The same seed and actions give the same trajectory: on both backends, with dropout too."""

import copy
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynopt_ray.policies import ACTION_FEATURES, DEFAULT_ACTIONS, FEATURES, Rule, adapt
from dynopt_ray.tasks import Task
from dynopt_ray.tasks.builtin.models import mlp
from tests.envs.conftest import QUICK, rows

ID = "dynopt_envs:dynopt/Architecture-v0"
KEEP, GROW, SHRINK, PRUNE, STOP = map(
    DEFAULT_ACTIONS.place, ("keep", "grow", "shrink", "prune", "stop")
)
NUM_DECISIONS = 16


@pytest.fixture
def exact() -> Iterator[None]:
    """Compute in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small_task(hidden: list[int], *, num_rows: int = 200, **options: Any) -> Task:
    x, y = rows(num_rows, 8)
    cut = num_rows - 60
    return Task.from_arrays(
        model=lambda: mlp(8, hidden, 3),
        train=(x[:cut], y[:cut]),
        validation=(x[cut:], y[cut:]),
        **options,
    )


class WithDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.3)),
            *(nn.Linear(12, 10), nn.ReLU(), nn.Dropout(0.3), nn.Linear(10, 3)),
        )


def dropout_task(**data: Any) -> Task:
    x, y = rows(200, 8)
    return Task.from_arrays(
        model=WithDropout, train=(x[:140], y[:140]), validation=(x[140:], y[140:]), **data
    )


def make_vec(num_envs: int, **options: Any) -> Any:
    mode = "vector_entry_point"
    return gymnasium.make_vec(ID, num_envs, vectorization_mode=mode, **(QUICK | options)).unwrapped


def wanted_actions(kind: str, mask: NDArray[np.int8], generator: np.random.Generator) -> Any:
    """One action per environment: of one kind where it is legal, or any but stop."""
    if kind == "any":
        return np.array([generator.choice(np.flatnonzero(row[:STOP])) for row in mask])
    place = DEFAULT_ACTIONS.place(kind)
    return np.where(mask[:, place] > 0, place, KEEP)


@pytest.mark.parametrize("kind", ["keep", "grow", "shrink", "prune", "any"])
@pytest.mark.parametrize(
    ("hidden", "options"),
    [
        ([24, 20], {}),
        ([16, 12, 8], {"batch_size": 33}),
        ([24], {"batch_size": 7, "num_rows": 700}),
    ],
)
@pytest.mark.usefixtures("exact")
def test_stacked_and_real_networks_agree_after_sixteen_decisions(
    hidden: list[int], options: dict[str, Any], kind: str
) -> None:
    task = small_task(hidden, **options)
    stacked, real = (
        make_vec(3, task=task, backend=backend, horizon=NUM_DECISIONS + 1)
        for backend in ("population", "module")
    )
    seen = [env.reset(seed=5)[0] for env in (stacked, real)]
    generator = np.random.default_rng(0)
    x = task.arrays("validation")[0]
    for _ in range(NUM_DECISIONS):
        assert (seen[0]["action_mask"] == seen[1]["action_mask"]).all()
        actions = wanted_actions(kind, seen[0]["action_mask"], generator)
        seen = [env.step(actions)[0] for env in (stacked, real)]
        assert np.abs(seen[0]["observations"] - seen[1]["observations"]).max() < 2e-6
    members, networks = stacked._episodes._backend._members, real._episodes._backend._networks
    for member, network in enumerate(networks):
        assert list(network.graph.widths.values()) == members.widths[member].tolist()
        ours, theirs = members.to_module(member), network.graph.model
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one == 0, other == 0)  # the same masks
        assert torch.allclose(ours(x), theirs(x), rtol=1e-9, atol=1e-9)


def test_training_a_network_that_was_shrunk_often_is_stable() -> None:
    env = make_vec(4, task="digits-mlp", num_starts=4, train_steps=20, start_steps=200, horizon=17)
    seen, _ = env.reset(seed=0)
    before = env._episodes._backend.measure().train_loss.copy()
    for _ in range(10):
        seen, *_ = env.step(wanted_actions("shrink", seen["action_mask"], np.random.default_rng()))
    after = env._episodes._backend.measure()
    assert (after.train_loss < before + 0.3).all()
    assert (after.metric > 0.8).all()


def played(env: Any, seed: int, *, disturb: bool = False) -> tuple[list[float], list[torch.Tensor]]:
    """The rewards of an episode and the weights at its end."""
    env.reset(seed=seed)
    rewards = []
    for action in (SHRINK, KEEP, PRUNE, GROW, SHRINK, KEEP):
        if disturb:
            torch.manual_seed(int(torch.randint(1000, ())))
            torch.rand(17)
        rewards.append(float(env.step(np.int64(action))[1]))
    model = env._episodes._backend._networks[0].graph.model
    return rewards, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("source", ["arrays", "loaders"])
def test_dropout_draws_from_the_seed_alone(source: str) -> None:
    task = dropout_task()
    if source == "loaders":
        loaders = {
            split: DataLoader(TensorDataset(*task.arrays(split)), 32, shuffle=split == "train")
            for split in ("train", "validation")
        }
        task = Task.from_loaders(model=WithDropout, **loaders)  # type: ignore[arg-type]
    env = gymnasium.make(ID, task=task, **QUICK).unwrapped
    torch.manual_seed(1)
    first = played(env, 3)
    state = torch.get_rng_state()
    second = played(env, 3, disturb=True)
    other = played(env, 4)
    assert first[0] == second[0]
    assert all(map(torch.equal, first[1], second[1]))
    assert first[0] != other[0]
    torch.set_rng_state(state)
    played(env, 5)
    assert torch.equal(torch.get_rng_state(), state)  # an episode leaves torch's generator alone


def test_dropout_draws_anew_at_every_decision() -> None:
    env: Any = gymnasium.make(ID, task=dropout_task(), **QUICK).unwrapped
    env.reset(seed=0)
    network = env._episodes._backend._networks[0]
    drawn = []
    for _ in range(2):
        with network.random():
            drawn.append(torch.rand(4))
    assert not torch.equal(*drawn)


def test_the_pool_depends_on_its_seeds_alone() -> None:
    """A pool is trained when it is first needed, at any time in a process's life."""
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        env: Any = gymnasium.make(ID, task=dropout_task(), **QUICK).unwrapped
        env.reset(seed=0)
        model = env._episodes._backend._networks[0].graph.model
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *weights))


def test_a_network_with_dropout_does_not_depend_on_its_neighbours() -> None:
    task = dropout_task()
    together, alone = make_vec(3, task=task), make_vec(1, task=task)
    together.reset(seed=[7, 8, 9])
    alone.reset(seed=[8])
    for actions in ([GROW, SHRINK, KEEP], [KEEP, PRUNE, SHRINK], [STOP, KEEP, GROW]):
        rewards = together.step(np.array(actions))[1]
        assert rewards[1] == alone.step(np.array(actions[1:2]))[1][0]


def test_adapt_and_the_environment_agree_with_dropout() -> None:
    task = dropout_task(batch_size=32)
    env: Any = gymnasium.make(ID, task=task, **(QUICK | {"cost_weight": 0.3})).unwrapped
    env.reset(seed=1)
    start = env._episodes._backend._networks[0]
    model, optimizer = copy.deepcopy((start.graph.model, start.optimizer))
    chosen = iter([SHRINK, GROW, KEEP, SHRINK, STOP])
    result = adapt(
        model,
        task,
        Rule(lambda *_: next(chosen)),
        cost_weight=0.3,
        horizon=QUICK["horizon"],
        train_steps=QUICK["train_steps"],
        optimizer=optimizer,
        seed=start.seed,
    )
    utilities = [env.step(np.int64(a))[4]["utility"] for a in (SHRINK, GROW, KEEP, SHRINK)]
    assert result.history["utility"].tolist()[1:] == pytest.approx(utilities, abs=1e-6)


WHOLE = [
    "keep",
    {"name": "grow", "fraction": 0.5},
    "shrink",
    {"name": "shrink_network", "left": 0.75},
    {"name": "shrink_network", "left": 0.4},
    "prune",
    {"name": "prune_network", "left": 0.6},
]


@pytest.mark.parametrize("hidden", [[24, 20], [9, 16, 8]])
@pytest.mark.usefixtures("exact")
def test_previews_and_cuts_of_whole_networks_agree(hidden: list[int]) -> None:
    options = {"actions": WHOLE, "preview": True, "cost": None, "horizon": 9}
    stacked, real = (
        make_vec(3, task=small_task(hidden), backend=backend, **options)
        for backend in ("population", "module")
    )
    seen = [env.reset(seed=5)[0] for env in (stacked, real)]
    generator = np.random.default_rng(0)
    for _ in range(8):
        assert (seen[0]["action_mask"] == seen[1]["action_mask"]).all()
        apart = np.abs(seen[0]["observations"] - seen[1]["observations"])
        assert np.quantile(apart, 0.99) < 2e-6
        assert apart.max() < 0.01  # a refitted weight may be 0 or a rounding error, which counts
        mask = seen[0]["action_mask"]
        actions = np.array([generator.choice(np.flatnonzero(row)) for row in mask])
        seen = [env.step(actions)[0] for env in (stacked, real)]
    widths = [list(n.graph.widths.values()) for n in real._episodes._backend._networks]
    assert stacked._episodes._backend._members.widths.tolist() == widths


@pytest.mark.parametrize("backend", ["population", "module"])
def test_previews_change_nothing_and_tell_what_actions_do(backend: str) -> None:
    task = small_task([24, 20])
    options = {"task": task, "backend": backend, "actions": WHOLE, "cost": "flops", "horizon": 4}
    with_previews, without = (make_vec(2, preview=p, **options) for p in (True, False))
    generator = np.random.default_rng(1)
    seen, other = with_previews.reset(seed=3)[0], without.reset(seed=3)[0]
    names = list(ACTION_FEATURES)
    for _ in range(3):
        plain, of_actions = np.split(seen["observations"], [len(FEATURES)], axis=1)
        # Stacks of another padding round otherwise.
        assert np.abs(plain - other["observations"]).max() < 1e-3
        table = of_actions.reshape(2, len(WHOLE), len(names))
        actions = np.array([generator.choice(np.flatnonzero(row)) for row in seen["action_mask"]])
        seen = with_previews.step(actions)[0]
        other = without.step(actions)[0]
        for env, action in enumerate(actions):
            told = 2 ** table[env, action, names.index("cost_flops")]
            before, now = (
                values[env, FEATURES.index("cost_flops")]
                for values in (plain, seen["observations"])
            )
            assert now / before == pytest.approx(told, rel=1e-3)
