"""Evaluating a policy in episodes whose starts depend on the seed alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from dynopt_ray.arrays import FloatArray
from dynopt_ray.policies.policy import Policy

ENVIRONMENT = "dynopt_envs:dynopt/Architecture-v0"
"""The default environment for training and evaluating policies."""

_LARGEST_STACK = 64
_FINAL = ("utility", "smooth_utility", "metric", "relative_cost", "gradient_steps")


@dataclass(frozen=True, eq=False)
class PolicyEvaluation:
    """The results of a policy, one entry per episode.

    Figures that the environment does not report are NaN.

    Attributes:
        returns: sum of the episode's rewards.
        utility: U = metric − λ · relative cost at the end.
        smooth_utility: U at the end with the smooth metric, which rewards are computed from.
        metric: the validation metric at the end.
        relative_cost: the cost at the end over the cost at the start.
        num_steps: number of decisions.
        gradient_steps: number of optimizer steps that the network took.
    """

    returns: FloatArray
    utility: FloatArray
    smooth_utility: FloatArray
    metric: FloatArray
    relative_cost: FloatArray
    num_steps: FloatArray
    gradient_steps: FloatArray

    @property
    def effort(self) -> FloatArray:
        """The gradient steps of each episode, or its decisions if they are not reported."""
        return np.where(np.isnan(self.gradient_steps), self.num_steps, self.gradient_steps)

    @property
    def mean(self) -> float:
        """Mean final utility."""
        return float(self.utility.mean())

    @property
    def sd(self) -> float:
        """Standard deviation of the final utility over episodes."""
        return float(self.utility.std(ddof=1)) if len(self.utility) > 1 else 0.0

    def __str__(self) -> str:
        return (
            f"utility {self.mean:.4f} ± {self.sd:.4f} over {len(self.utility)} episodes: metric "
            f"{self.metric.mean():.4f} at {self.relative_cost.mean():.3f} of the cost"
        )


def evaluate_policy(
    policy: Policy,
    env_id: str = ENVIRONMENT,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    num_episodes: int = 32,
    seed: int = 0,
    effort: FloatArray | None = None,
) -> PolicyEvaluation:
    """Run a policy for some episodes and return its results.

    Episode i starts from seed + i, whatever the policy does. Two policies that are evaluated with
    the same seed therefore meet the same starting networks, λ and batches.

    Args:
        policy: makes the decisions; whether it explores is its own choice.
        env_id: a Gymnasium id with `vector_entry_point`, whose observations are
            `Dict(observations, action_mask)`.
        env_kwargs: further keyword arguments of `gymnasium.make_vec`.
        num_episodes: number of episodes, at least 1.
        seed: seed of the first episode.
        effort: for each episode, the number of gradient steps (decisions, if the environment does
            not report gradient steps) after which it is cut off. `effort` of another policy's
            evaluation gives both policies the same training. None cuts nothing off.

    Raises:
        ValueError: `num_episodes` is less than 1, or `effort` has another length.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes is {num_episodes}; it must be at least 1")
    if effort is not None and len(effort) != num_episodes:
        raise ValueError(
            f"effort has {len(effort)} entries; give one for each of {num_episodes} episodes"
        )
    limits = np.full(num_episodes, np.inf) if effort is None else effort
    parts = []
    for first in range(0, num_episodes, _LARGEST_STACK):
        env = gymnasium.make_vec(
            env_id,
            num_envs=min(_LARGEST_STACK, num_episodes - first),
            vectorization_mode="vector_entry_point",
            **(env_kwargs or {}),
        )
        parts.append(_run(policy, env, seed + first, limits[first : first + _LARGEST_STACK]))
        env.close()
    values = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in PolicyEvaluation.__dataclass_fields__
    }
    return PolicyEvaluation(**values)


def _run(
    policy: Policy, env: gymnasium.vector.VectorEnv[Any, Any, Any], seed: int, limits: FloatArray
) -> PolicyEvaluation:
    """Run one episode in each of the environments until all are over or cut off."""
    observation, info = env.reset(seed=seed)
    count = env.num_envs
    final = {name: np.asarray(info.get(name, np.full(count, np.nan)), float) for name in _FINAL}
    returns, num_steps = np.zeros((2, count))
    found = PolicyEvaluation(returns=returns, num_steps=num_steps, **final)
    running = found.effort < limits
    while running.any():
        features, mask = observation["observations"], observation["action_mask"]
        # Environments whose episode is over reset themselves. Any legal action will do for them.
        actions = np.array(
            [
                policy.act(features[i], mask[i]) if running[i] else mask[i].argmax()
                for i in range(count)
            ]
        )
        observation, rewards, terminated, truncated, info = env.step(actions)
        returns[running] += rewards[running]
        num_steps[running] += 1
        for name in final.keys() & info.keys():
            final[name][running] = np.asarray(info[name])[running]
        running &= ~(terminated | truncated) & (found.effort < limits)
    return found
