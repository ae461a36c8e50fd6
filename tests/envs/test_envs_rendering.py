"""Pictures of episodes: of both environments, of the right size, and showing what changed."""

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from dynopt_envs.architecture import ArchitectureEnv
from dynopt_envs.rendering import EpisodeFrame, draw_episode
from dynopt_ray.errors import UnknownNameError
from dynopt_ray.policies import DEFAULT_ACTIONS
from dynopt_ray.tasks import Task
from tests.envs.conftest import QUICK

ID = "dynopt_envs:dynopt/Architecture-v0"
KEEP, SHRINK = DEFAULT_ACTIONS.place("keep"), DEFAULT_ACTIONS.place("shrink")


def make(**options: Any) -> Any:
    return gymnasium.make(ID, **(QUICK | options)).unwrapped


@pytest.mark.parametrize("backend", ["population", "module"])
def test_pictures_pass_gymnasiums_checker(backend: str, mlp_task: Task) -> None:
    check_env(make(task=mlp_task, backend=backend, render_mode="rgb_array"))


def test_a_picture_shows_the_latest_network_and_its_course(mlp_task: Task) -> None:
    env = make(task=mlp_task, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert (before.shape, before.dtype) == ((450, 1000, 3), np.uint8)
    np.testing.assert_array_equal(before, env.render())
    env.step(SHRINK)
    after = env.render()
    for half in (np.s_[:, :400], np.s_[:, 550:]):
        assert (before[half] != after[half]).any()
    env.reset(seed=0)
    np.testing.assert_array_equal(before, env.render())


def test_frames_have_the_figures_of_the_episode(mlp_task: Task) -> None:
    actions = ["keep", {"name": "grow", "max_growth": 1.0}, "shrink"]
    env = make(task=mlp_task, render_mode="rgb_array", illegal="keep", actions=actions)
    env.reset(seed=0)
    for action in (2, 1):  # the second group has no room to grow
        *_, info = env.step(action)
    start, shrunk, kept = env._frames
    assert (start.action, shrunk.action, kept.action) == (None, "shrink", "keep")
    assert start.widths == [12, 10]
    assert shrunk.widths[0] < 12
    assert shrunk.start_widths == [12, 10]
    assert (start.cursor, shrunk.cursor, kept.cursor) == (0, 1, 0)
    for name in ("metric", "relative_cost", "utility", "cost_weight"):
        assert getattr(kept, name) == info[name]


def test_a_network_of_one_group_and_a_long_episode_can_be_drawn() -> None:
    frames = [
        EpisodeFrame(
            widths=[300 - step],
            start_widths=[300],
            cursor=0,
            action="own action" if step else None,
            metric=0.5,
            relative_cost=1 - step / 100,
            utility=-0.2,
            cost_weight=0.7,
        )
        for step in range(40)
    ]
    assert draw_episode(frames).std() > 10


def test_without_a_render_mode_nothing_is_drawn_or_kept(mlp_task: Task) -> None:
    env = make(task=mlp_task)
    env.reset(seed=0)
    env.step(KEEP)
    assert env.render() is None
    assert not env._frames


def test_pictures_need_an_episode_and_a_known_mode(mlp_task: Task) -> None:
    with pytest.raises(ResetNeeded, match="call reset"):
        make(task=mlp_task, render_mode="rgb_array").render()
    with pytest.raises(UnknownNameError, match="rgb_array"):
        ArchitectureEnv(task=mlp_task, render_mode="ansi")


def test_matplotlib_is_imported_when_the_first_picture_is_drawn() -> None:
    code = (
        "import gymnasium, sys\n"
        "env = gymnasium.make('dynopt_envs:dynopt/TabularArchitecture-v0',"
        " render_mode='rgb_array')\n"
        "env.reset(seed=0); assert 'matplotlib' not in sys.modules\n"
        "env.render(); assert 'matplotlib' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
