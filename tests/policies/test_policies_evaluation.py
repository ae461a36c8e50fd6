"""Evaluations of two policies with the same training, on networks that training did not use."""

from typing import Any

import numpy as np
import pytest

from dynopt_ray.policies import ENVIRONMENT, ConstantPolicy, RandomPolicy, evaluate_policy
from dynopt_ray.runs.kinds.policy.runner import with_unseen_networks
from dynopt_ray.tasks import Task
from tests.envs.conftest import QUICK, mlp_task
from tests.policies.corridor import CASH, GO, ID, register

__all__ = ["mlp_task"]
register()


def test_a_random_policy_avoids_actions_unless_nothing_else_is_legal() -> None:
    policy = RandomPolicy(0, avoid=frozenset({1, 2}))
    mask = np.array([1, 1, 1, 1], np.int8)
    drawn = {policy.act(np.zeros(1, np.float32), mask) for _ in range(50)}
    assert drawn == {0, 3}
    assert policy.act(np.zeros(1, np.float32), np.array([0, 0, 1, 0], np.int8)) == 2


def test_an_episode_is_cut_off_when_its_gradient_steps_are_spent(mlp_task: Task) -> None:
    env: dict[str, Any] = {"task": mlp_task, **QUICK}
    limits = np.array([0, 4, 8, 1000]) / 4 * QUICK["train_steps"]
    policy = RandomPolicy(0, avoid=frozenset({4}))
    found = evaluate_policy(policy, ENVIRONMENT, env, num_episodes=4, effort=limits)
    whole = QUICK["horizon"] * QUICK["train_steps"]
    assert found.gradient_steps.tolist() == np.minimum(limits, whole).tolist()
    assert found.num_steps.tolist() == [0, 1, 2, QUICK["horizon"]]
    # An episode that is cut off at once has the figures of its start.
    untouched = evaluate_policy(ConstantPolicy("stop"), ENVIRONMENT, env, num_episodes=4)
    assert found.utility[0] == untouched.utility[0]
    assert (found.returns[0], untouched.gradient_steps.tolist()) == (0.0, [0.0] * 4)


def test_another_policy_gets_the_same_training(mlp_task: Task) -> None:
    env: dict[str, Any] = {"task": mlp_task, **QUICK}
    short = evaluate_policy(RandomPolicy(1), ENVIRONMENT, env, num_episodes=8)
    assert len(set(short.effort)) > 1
    baseline = RandomPolicy(2, avoid=frozenset({4}))
    equal = evaluate_policy(baseline, ENVIRONMENT, env, num_episodes=8, effort=short.effort)
    assert equal.gradient_steps.tolist() == short.gradient_steps.tolist()


def test_without_gradient_steps_decisions_are_counted() -> None:
    class Goer:
        def act(self, _: Any, mask: Any) -> int:
            return GO if mask[GO] else CASH

    limits = np.array([1.0, 3.0, 9.0])
    found = evaluate_policy(Goer(), ID, num_episodes=3, effort=limits)
    assert np.isnan(found.gradient_steps).all()
    assert found.effort.tolist() == found.num_steps.tolist() == [1, 3, 4]
    with pytest.raises(ValueError, match="effort has 2 entries; give one for each of 3"):
        evaluate_policy(Goer(), ID, num_episodes=3, effort=limits[:2])


def test_policies_are_judged_on_networks_that_are_not_in_the_training_pool(mlp_task: Task) -> None:
    env: dict[str, Any] = {"task": mlp_task, "cost_weight": 0.0, "first_start": 2, **QUICK}
    unseen = with_unseen_networks(ENVIRONMENT, env)
    assert {**unseen, "first_start": 2} == env

    def starts(options: dict[str, Any]) -> set[float]:
        stop = ConstantPolicy("stop")
        found = evaluate_policy(stop, ENVIRONMENT, options, num_episodes=30)
        return set(found.smooth_utility.tolist())

    assert len(starts(env)) == QUICK["num_starts"]
    assert starts(env).isdisjoint(starts(unseen))
    assert with_unseen_networks(ID, {"a": 1}) == {"a": 1}
