"""`kind: policy` and `kind: adapt`."""

from typing import Any, Literal

from pydantic import Field

from dynopt_ray.runs.spec import Spec, Strict


class PolicySettings(Strict):
    """How a policy learns; see `dynopt_ray.cluster.policy_training.PolicySettings`.

    Lists stand for tuples there; the seed is the spec's.
    """

    num_steps: int = Field(default=37_000, ge=1)
    num_envs: int = Field(default=32, ge=1)
    num_env_runners: int = Field(default=0, ge=0)
    num_learners: int = Field(default=0, ge=0)
    warmup_steps: int = Field(default=1_000, ge=0)
    updates_per_step: int = Field(default=8, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    discount: float = Field(default=0.99, gt=0, le=1)
    n_step: int = Field(default=4, ge=1)
    target_rate: float = Field(default=0.005, gt=0, le=1)
    averaging_fraction: float = Field(default=0.05, gt=0, le=1)
    epsilon: float = Field(default=0.05, gt=0, le=1)
    epsilon_fraction: float = Field(default=0.5, gt=0, le=1)
    capacity: int = Field(default=50_000, ge=1)
    priority: float = Field(default=0.5, ge=0)
    priority_correction: float = Field(default=0.4, ge=0)
    hidden: tuple[int, ...] = Field(default=(128, 128), min_length=1, strict=False)
    head: int = Field(default=64, ge=1)
    save_every_steps: int = Field(default=5_000, ge=1)


class PolicySpec(Spec):
    """Learn a structure policy and compare it with a random one.

    Attributes:
        env_id: a Gymnasium id; None is dynopt_ray's own environment of network structure.
        env: what the environment is made with: task, cost_weight (λ), horizon, ….
        policy: how it learns.
        num_episodes: episodes of the comparison.
    """

    kind: Literal["policy"]
    env_id: str | None = None
    env: dict[str, Any] = Field(default_factory=dict)
    policy: PolicySettings = PolicySettings()
    num_episodes: int = Field(default=32, ge=1)
