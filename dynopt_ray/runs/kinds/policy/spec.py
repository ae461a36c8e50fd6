"""The spec of `kind: policy`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from dynopt_ray.cluster import training_need
from dynopt_ray.policies import ENVIRONMENT, DQNSettings
from dynopt_ray.runs.kind import Kind, WorkPart
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


def environment(spec: PolicySpec) -> dict[str, Any]:
    """Return the arguments of the environment; our own one computes on the device of the spec."""
    return dict(spec.env) if spec.env_id else {"device": spec.device, **spec.env}


def policy_work(settings: DQNSettings, env_id: str, env: Mapping[str, Any]) -> WorkPart:
    """Return the rounds in which each environment takes a step."""
    rounds = -(-settings.num_steps // settings.num_envs)
    note = f"{settings.num_steps:,} steps of {settings.num_envs} environments, without learning"
    return WorkPart(
        "policy",
        rounds,
        "environment rounds",
        note=note,
        environments={"id": env_id, "num_envs": settings.num_envs, **env},
    )


KIND = Kind(
    PolicySpec,
    "dynopt_ray.runs.kinds.policy.runner:prepare",
    work=lambda spec: (policy_work(spec.policy, spec.env_id or ENVIRONMENT, environment(spec)),),
    need=lambda spec: training_need(spec.policy),
)
