"""What a spec of `kind: adapt` may say."""

from typing import Literal

from pydantic import Field

from dynopt_ray.policies import ChargedCost
from dynopt_ray.runs.spec import CostFractions, NetworkSpec, PolicyField, Strict


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
    budget: CostFractions | None = None


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
    policy: PolicyField = Field(description="a rule's name, or where a learned policy is")
    cost_weight: float = Field(default=0.1, ge=0)
    cost: ChargedCost = "nonzero"
    adapt: AdaptSettings = AdaptSettings()
