"""Several tasks in one environment: who plays which, and that each is played as if alone."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from dynopt_ray.policies import DEFAULT_ACTIONS, FEATURES
from dynopt_ray.tasks import Task, drawn_tasks
from dynopt_ray.tasks.builtin.models import mlp
from tests.envs.conftest import QUICK, rows

ID = "dynopt_envs:dynopt/Architecture-v0"
CUTS = ["keep", "shrink", {"name": "shrink_network", "left": 0.5}, "stop"]


def task(hidden: list[int], *, num_rows: int = 300, first: int = 0) -> Task:
    x, y = rows(num_rows + first, 8)
    x, y = x[first:], y[first:]
    cut = num_rows - 80
    return Task.from_arrays(
        model=lambda: mlp(8, hidden, 3),
        train=(x[:cut], y[:cut]),
        validation=(x[cut:], y[cut:]),
    )


def make_vec(num_envs: int, tasks: Any, **options: Any) -> Any:
    mode = "vector_entry_point"
    return gymnasium.make_vec(
        ID, num_envs, vectorization_mode=mode, task=tasks, **(QUICK | options)
    ).unwrapped


def test_networks_of_different_widths_and_data_share_a_stack() -> None:
    tasks = [task([24, 20]), task([9, 16], first=20)]
    options = {"num_starts": 1, "actions": CUTS, "preview": True, "horizon": 5}
    # With one starting network per task, the task is what the environment's seed draws.
    both = make_vec(6, tasks, **options)
    # Lists of equal length, because the draw of a task uses up random numbers.
    alone = [make_vec(6, [one, one], **options) for one in tasks]
    seen = both.reset(seed=0)[0]["observations"]
    of_task = [int(width == 9) for width in both._episodes._backend._members.widths[:, 0]]
    assert set(of_task) == {0, 1}
    for env in alone:
        env.reset(seed=0)
    for action in (2, 0, 1, 2):
        steps = [env.step(np.full(6, action)) for env in (both, *alone)]
        for member, place in enumerate(of_task):
            mine, theirs = steps[0], steps[1 + place]
            for one, other in (
                (mine[0]["observations"], theirs[0]["observations"]),
                (mine[1], theirs[1]),
                (mine[4]["metric"], theirs[4]["metric"]),
            ):
                assert one[member] == pytest.approx(other[member], abs=2e-3)
    assert seen.shape[1] > len(FEATURES)


@pytest.mark.parametrize("backend", ["auto", "module"])
def test_kinds_take_turns(backend: str) -> None:
    tasks = [task([12]), task([9, 8]), task([6])]
    env = make_vec(5, tasks, backend=backend, num_starts=1, horizon=3)
    seen, _ = env.reset(seed=1)
    assert env.observation_space.contains(seen)
    widths = seen["observations"][:, FEATURES.index("depth")]
    assert (widths == 0).all()
    for _ in range(4):
        seen, rewards, over, _, info = env.step(np.zeros(5, dtype=np.int64))
    depth = seen["observations"][:, FEATURES.index("depth")]
    assert depth[[0, 2, 4]].tolist() == [0, 0, 0]  # a single group
    assert np.isfinite(rewards).all()
    assert info["gradient_steps"].shape == over.shape == (5,)
    kinds = [sorted({len(w) for w in networks_of(k)}) for k in env._episodes._kinds]
    assert kinds == [[1], [2]]
    assert env.action_masks().shape == (5, len(DEFAULT_ACTIONS))


def networks_of(kind: Any) -> list[list[int]]:
    backend = kind._backend
    if hasattr(backend, "_networks"):
        return [list(network.graph.widths.values()) for network in backend._networks]
    return [row.tolist() for row in backend._members.widths]


def test_a_single_environment_draws_a_task_for_each_episode() -> None:
    env = gymnasium.make(ID, task=[task([12]), task([9, 8])], **(QUICK | {"num_starts": 1}))
    seen = set()
    for seed in range(12):
        observation, _ = env.reset(seed=seed)
        assert env.observation_space.contains(observation)
        env.step(np.int64(DEFAULT_ACTIONS.place("shrink")))
        seen.add(env.unwrapped._episodes._backend.num_groups)  # type: ignore[attr-defined]
    assert seen == {1, 2}


def test_lists_that_cannot_be_played_are_refused() -> None:
    with pytest.raises(ValueError, match="empty list"):
        make_vec(2, [])
    with pytest.raises(ValueError, match="1 environments cannot play 2 kinds of tasks"):
        make_vec(1, [task([12]), task([9, 8])])


def test_drawn_tasks_of_four_depths_make_four_stacks() -> None:
    tasks = drawn_tasks(8, seed=3, pad_to=(64, 10))
    env = make_vec(8, list(tasks), num_starts=1, start_steps=10, train_steps=2, horizon=2)
    env.reset(seed=0)
    assert len(env._episodes._kinds) == 4
    for action in (DEFAULT_ACTIONS.place("shrink"), 0, 0):
        _, rewards, *_ = env.step(np.full(8, action))
        assert np.isfinite(rewards).all()
