"""`kind: policy` and `kind: adapt`."""

from typing import Any, Literal

from pydantic import Field

from dynopt_ray.runs.fields import PolicyConfig
from dynopt_ray.runs.specs.base import CostKind, Fractions, NetworkSpec, Spec
from dynopt_ray.runs.validation import Strict


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


class Actions(Strict):
    """How much each decision changes."""

    grow_fraction: float = Field(default=0.3, gt=0, le=1)
    shrink_fraction: float = Field(default=0.3, gt=0, le=1)
    prune_fraction: float = Field(default=0.3, gt=0, le=1)
    max_growth: float = Field(default=1.5, ge=1)


class AdaptSettings(Strict):
    """How a policy changes a network.

    Attributes:
        horizon: decisions at most.
        train_steps: optimizer steps after each.
        lr: their learning rate.
        actions: how much each decision changes.
        budget: limits that must hold in the end, as fractions of the start.
    """

    horizon: int = Field(default=16, ge=1)
    train_steps: int = Field(default=20, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    actions: Actions = Actions()
    budget: Fractions | None = None


class AdaptSpec(NetworkSpec):
    """Let a policy, learned or a rule, change one trained network.

    Attributes:
        policy: a rule's name, a mapping with `name` and its arguments, or a run directory of
            `kind: policy` or the file of a learned policy.
        cost_weight: λ of utility = accuracy − λ · relative cost.
        cost: the cost that utility charges for.
        adapt: how.
    """

    kind: Literal["adapt"]
    policy: PolicyConfig = Field(description="a rule's name, or where a learned policy is")
    cost_weight: float = Field(default=0.1, ge=0)
    cost: CostKind = "nonzero"
    adapt: AdaptSettings = AdaptSettings()
