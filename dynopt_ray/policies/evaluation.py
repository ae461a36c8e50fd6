"""How good a policy is: episodes of its own decisions, on starts that only the seed decides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from dynopt_ray.arrays import FloatArray
from dynopt_ray.policies.policy import Policy

ENVIRONMENT = "dynopt_envs:dynopt/Architecture-v0"
"""The environment that policies are trained and evaluated in unless asked otherwise."""

_LARGEST_STACK = 64
_FINAL = ("utility", "smooth_utility", "metric", "relative_cost")


@dataclass(frozen=True, eq=False)
class PolicyEvaluation:
    """What a policy reached, one entry per episode.

    Attributes:
        returns: sum of rewards.
        utility: U = metric − λ · relative cost at the end; NaN where the environment does not
            report it.
        smooth_utility: the same of the smoother metric that rewards are made of, likewise.
        metric: the validation metric at the end, likewise.
        relative_cost: the cost at the end over that at the start, likewise.
        num_steps: decisions taken.
    """

    returns: FloatArray
    utility: FloatArray
    smooth_utility: FloatArray
    metric: FloatArray
    relative_cost: FloatArray
    num_steps: FloatArray

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
) -> PolicyEvaluation:
    """Run a policy for some episodes.

    Episode i starts from seed + i whatever the policy does, so two policies evaluated with one
    seed meet the same starting networks, λ and batches.

    Args:
        policy: decides; greedily or not is up to it.
        env_id: a Gymnasium id with `vector_entry_point`, whose observations are
            `Dict(observations, action_mask)`.
        env_kwargs: what `gymnasium.make_vec` is given besides.
        num_episodes: how many.
        seed: of the first episode.

    Raises:
        ValueError: `num_episodes` is less than 1.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes is {num_episodes}; it must be at least 1")
    parts = []
    for first in range(0, num_episodes, _LARGEST_STACK):
        env = gymnasium.make_vec(
            env_id,
            num_envs=min(_LARGEST_STACK, num_episodes - first),
            vectorization_mode="vector_entry_point",
            **(env_kwargs or {}),
        )
        parts.append(_run(policy, env, seed + first))
        env.close()
    values = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in PolicyEvaluation.__dataclass_fields__
    }
    return PolicyEvaluation(**values)


def _run(policy: Policy, env: gymnasium.vector.VectorEnv[Any, Any, Any], seed: int) -> Any:
    """One episode in each of the environments, until the last is over."""
    observation, info = env.reset(seed=seed)
    count = env.num_envs
    going = np.ones(count, dtype=np.bool_)
    final = {name: np.full(count, np.nan) for name in _FINAL}
    returns, num_steps = np.zeros((2, count))
    while going.any():
        features, mask = observation["observations"], observation["action_mask"]
        # Those that are over start anew by themselves; their actions need only be legal.
        actions = np.array(
            [
                policy.act(features[i], mask[i]) if going[i] else mask[i].argmax()
                for i in range(count)
            ]
        )
        observation, rewards, terminated, truncated, info = env.step(actions)
        returns[going] += rewards[going]
        num_steps[going] += 1
        for name in final.keys() & info.keys():
            final[name][going] = np.asarray(info[name])[going]
        going &= ~(terminated | truncated)
    return PolicyEvaluation(returns=returns, num_steps=num_steps, **final)
