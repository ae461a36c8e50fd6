"""Illegal actions: masks by the conventions of other packages, and actions that count as keep."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from dynopt_ray.errors import EditError, UnknownNameError
from dynopt_ray.tasks import Task
from tests.envs.conftest import QUICK

ID = "dynopt_envs:dynopt/Architecture-v0"
BACKENDS = pytest.mark.parametrize("backend", ["population", "module"])
NO_ROOM = {"name": "grow", "max_growth": 1.0}
ACTIONS = ["keep", NO_ROOM, "shrink"]
KEEP, FORBIDDEN, SHRINK = range(3)


def make(**options: Any) -> Any:
    return gymnasium.make(ID, **({"actions": ACTIONS} | QUICK | options)).unwrapped


def make_vec(num_envs: int, **options: Any) -> Any:
    mode = "vector_entry_point"
    options = {"actions": ACTIONS} | QUICK | options
    return gymnasium.make_vec(ID, num_envs, vectorization_mode=mode, **options).unwrapped


@BACKENDS
def test_action_masks_are_those_of_the_observation(backend: str, mlp_task: Task) -> None:
    env = make(task=mlp_task, backend=backend)
    vector = make_vec(3, task=mlp_task, backend=backend)
    for subject in (env, vector):
        with pytest.raises(ResetNeeded, match="call reset"):
            subject.action_masks()
    seen, info = env.reset(seed=0)
    together, _ = vector.reset(seed=0)
    assert not env.action_masks()[FORBIDDEN]
    for action in (SHRINK, KEEP, SHRINK):
        mask = env.action_masks()
        assert mask.dtype == np.bool_
        assert mask.tolist() == seen["action_mask"].tolist() == info["action_mask"].tolist()
        assert vector.action_masks().tolist() == together["action_mask"].tolist()
        seen, *_, info = env.step(np.int64(action))
        together, *_ = vector.step(np.full(3, action))
    # What sb3-contrib's get_action_masks calls through its wrappers.
    wrapped = gymnasium.make(ID, task=mlp_task, **QUICK)
    wrapped.reset(seed=0)
    assert wrapped.get_wrapper_attr("action_masks")().shape == (5,)


@BACKENDS
def test_a_forbidden_action_counts_as_keep_and_says_so(backend: str, mlp_task: Task) -> None:
    lenient, strict = (
        make(task=mlp_task, backend=backend, illegal=illegal) for illegal in ("keep", "raise")
    )
    lenient.reset(seed=2)
    strict.reset(seed=2)
    with pytest.raises(EditError, match="action 1 of episode 0 would change nothing"):
        strict.step(np.int64(FORBIDDEN))
    for wished, carried_out in ((FORBIDDEN, KEEP), (SHRINK, SHRINK), (FORBIDDEN, KEEP)):
        *ours, info = lenient.step(np.int64(wished))
        *theirs, other = strict.step(np.int64(carried_out))
        assert info["illegal"] is (wished == FORBIDDEN)
        assert other["illegal"] is False
        assert ours[1:] == theirs[1:]
        np.testing.assert_array_equal(ours[0]["observations"], theirs[0]["observations"])
    assert lenient.reset()[1]["illegal"] is False


def test_in_a_vector_only_the_forbidden_ones_count_as_keep(mlp_task: Task) -> None:
    lenient, strict = (make_vec(3, task=mlp_task, illegal=i) for i in ("keep", "raise"))
    lenient.reset(seed=2)
    strict.reset(seed=2)
    _, ours, _, _, info = lenient.step(np.array([FORBIDDEN, SHRINK, KEEP]))
    _, theirs, *_ = strict.step(np.array([KEEP, SHRINK, KEEP]))
    assert info["illegal"].tolist() == [True, False, False]
    assert ours.tolist() == theirs.tolist()


def test_without_keep_a_forbidden_action_still_only_trains(mlp_task: Task) -> None:
    env = make(task=mlp_task, actions=[NO_ROOM, "shrink"], illegal="keep")
    _, before = env.reset(seed=0)
    *_, after = env.step(np.int64(0))
    assert after["relative_cost"] == before["relative_cost"]
    assert (after["gradient_steps"], after["illegal"]) == (QUICK["train_steps"], True)


def test_what_is_no_action_is_refused_all_the_same(mlp_task: Task) -> None:
    env = make(task=mlp_task, illegal="keep")
    env.reset(seed=0)
    for action in (3, -1):
        with pytest.raises(EditError, match="does not exist"):
            env.step(np.int64(action))


def test_options(mlp_task: Task) -> None:
    check_env(make(task=mlp_task, illegal="keep"), skip_render_check=True)
    with pytest.raises(UnknownNameError, match=r"no illegal 'mask'.*keep, raise"):
        make(illegal="mask")
    with pytest.raises(ValueError, match="first_start is -1"):
        make(first_start=-1)


def test_gradient_steps_are_counted_from_the_start_of_an_episode(mlp_task: Task) -> None:
    env = make(task=mlp_task, actions=["keep", "stop"])
    for _ in range(2):
        assert env.reset(seed=0)[1]["gradient_steps"] == 0
        for count in (1, 2):
            assert env.step(np.int64(0))[4]["gradient_steps"] == count * QUICK["train_steps"]
        assert env.step(np.int64(1))[4]["gradient_steps"] == 2 * QUICK["train_steps"]


@BACKENDS
def test_pools_of_other_seeds_share_no_network(backend: str, mlp_task: Task) -> None:
    def metrics_of(first_start: int) -> set[float]:
        env = make(task=mlp_task, backend=backend, first_start=first_start, cost_weight=0.0)
        return {env.reset(seed=seed)[1]["smooth_utility"] for seed in range(30)}

    training, judging = metrics_of(0), metrics_of(QUICK["num_starts"])
    assert len(training) == len(judging) == QUICK["num_starts"]
    assert training.isdisjoint(judging)
    assert metrics_of(0) == training
