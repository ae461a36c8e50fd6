"""The spec of `kind: adapt`."""

from typing import Literal

from pydantic import Field, model_validator

from dynopt_ray.policies import DEFAULT_ACTIONS, adapt, check_adaptation
from dynopt_ray.runs.kind import Kind, WorkPart, training_work
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
        horizon: maximum number of decisions.
        train_steps: number of optimizer steps after each decision.
        lr: learning rate of these steps.
        actions: the actions to choose from: names, or mappings with `name` and arguments.
        budget: limits that must hold at the end, as fractions of the costs at the start; None for
            no limit.
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
    """Let a rule or a learned policy change one trained network.

    Attributes:
        policy: a rule or a policy that cuts once (allocated_cut, ladder_cut, single_cut): its name,
            or a mapping with `name` and its arguments; or a learned policy: the run directory of a
            `kind: policy`, or the file of the policy. A policy that cuts once takes the training of
            all decisions after its cut.
        adapt: how the policy changes the network.
    """

    kind: Literal["adapt"]
    policy: PolicyField = Field(
        description="name of a rule or of a policy that cuts once, or path of a learned policy"
    )
    adapt: AdaptSettings = AdaptSettings()


def adaptation_work(settings: AdaptSettings) -> WorkPart:
    """Return the training between decisions."""
    steps = settings.horizon * settings.train_steps
    return WorkPart("adapt", steps, note=f"up to {settings.horizon} decisions")


KIND = Kind(
    AdaptSpec,
    "dynopt_ray.runs.kinds.adapt.runner:prepare",
    work=lambda spec: (*training_work(spec), adaptation_work(spec.adapt)),
)
