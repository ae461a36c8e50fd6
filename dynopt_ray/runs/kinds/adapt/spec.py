"""What a spec of `kind: adapt` may say."""

from typing import Literal

from pydantic import Field, model_validator

from dynopt_ray.policies import DEFAULT_ACTIONS, adapt, check_adaptation
from dynopt_ray.runs.kind import Kind
from dynopt_ray.runs.spec import (
    ActionsField,
    CostFractions,
    PolicyField,
    Strict,
    UtilitySpec,
    default_of,
)


class AdaptSettings(Strict):
    """How a policy changes a network.

    Attributes:
        horizon: decisions at most.
        train_steps: optimizer steps after each.
        lr: their learning rate.
        actions: what the policy chooses among: names, or mappings with `name` and arguments.
        budget: limits that must hold in the end, as fractions of the start.
    """

    horizon: int = default_of(adapt, "horizon")
    train_steps: int = default_of(adapt, "train_steps")
    lr: float = Field(default=1e-3, gt=0)
    actions: ActionsField = DEFAULT_ACTIONS.labels
    budget: CostFractions | None = None

    @model_validator(mode="after")
    def _in_range(self) -> "AdaptSettings":
        check_adaptation(
            cost_weight=0.0, cost="params", horizon=self.horizon, train_steps=self.train_steps
        )
        return self


class AdaptSpec(UtilitySpec):
    """Let a policy, learned or a rule, change one trained network.

    Attributes:
        policy: a rule's name, a mapping with `name` and its arguments, or a run directory of
            `kind: policy` or the file of a learned policy.
        adapt: how.
    """

    kind: Literal["adapt"]
    policy: PolicyField = Field(description="a rule's name, or where a learned policy is")
    adapt: AdaptSettings = AdaptSettings()


KIND = Kind(AdaptSpec, "dynopt_ray.runs.kinds.adapt.runner:prepare", on_cluster=False)
