"""The spec of `kind: policy`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from dynopt_ray.policies import DQNSettings
from dynopt_ray.runs.kind import Kind
from dynopt_ray.runs.spec import Fills, Spec

PolicyTraining = Annotated[DQNSettings, Fills(DQNSettings, omit=("env_id", "env_kwargs", "seed"))]
"""How a policy is trained. The environment and the seed are given elsewhere in the spec."""


class PolicySpec(Spec):
    """Train a structure policy, and compare it with a random one.

    Attributes:
        env_id: Gymnasium id of the environment; None is dynopt_ray's own environment of network
            structure.
        env: arguments of the environment: task, cost_weight (λ), horizon, …
        policy: how the policy is trained; see `dynopt_ray.policies.DQNSettings`.
        num_episodes: number of episodes of the comparison.
    """

    kind: Literal["policy"]
    env_id: str | None = None
    env: dict[str, Any] = Field(default_factory=dict)
    policy: PolicyTraining = DQNSettings()
    num_episodes: int = Field(default=32, ge=1)


KIND = Kind(PolicySpec, "dynopt_ray.runs.kinds.policy.runner:prepare")
