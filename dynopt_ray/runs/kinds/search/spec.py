"""`kind: search`."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from dynopt_ray.policies import ChargedCost
from dynopt_ray.runs.spec import (
    ByName,
    NetworkSpec,
    SchedulerField,
    SearcherField,
    Strict,
    checked_by,
)


def _space(value: Any) -> Any:
    from dynopt_ray.cluster import Space

    return checked_by(Space.parse)(value)


SearchSpace = Annotated[ByName | list[ByName], PlainValidator(_space)]
"""Lists are choices, {low, high, log} ranges, everything else is fixed; a list is a union."""


class SearchSettings(Strict):
    """How to search.

    Attributes:
        num_trials: trials in all; a grid needs no number.
        searcher: "optuna", "random", "grid" or a plugin: what draws configurations.
        scheduler: "asha", a plugin, or None: what stops trials early.
        find_rate: begin with a trial in the middle of the space, at the rate that the range test
            (`training.find_rate`) suggests for it.
        retrain_steps: optimizer steps of each trial.
        num_reports: measurements on the way, at which a trial may be stopped.
        cpus_per_trial: CPU cores that a trial holds; one thread per core.
        gpus_per_trial: GPUs that a trial holds; fractions share one.
        max_concurrent: trials at once; None is as many as there is room for.
        local: run them in this process, one after the other, on no cluster.
    """

    num_trials: int | None = Field(default=None, ge=1)
    searcher: SearcherField = "optuna"
    scheduler: SchedulerField | None = None
    find_rate: bool = False
    retrain_steps: int = Field(default=200, ge=1)
    num_reports: int = Field(default=10, ge=1)
    cpus_per_trial: float = Field(default=1, gt=0)
    gpus_per_trial: float = Field(default=0, ge=0)
    max_concurrent: int | None = Field(default=None, ge=1)
    local: bool = False


class SearchSpec(NetworkSpec):
    """Search pruning and retraining of one trained network for the best utility.

    Attributes:
        cost_weight: λ of utility = accuracy − λ · relative cost.
        cost: the cost that utility charges for.
        search: how to search.
        space: what trials may be given; see `PruneSettings` in `dynopt_ray.cluster`.
    """

    kind: Literal["search"]
    cost_weight: float = Field(default=0.1, ge=0)
    cost: ChargedCost = "nonzero"
    search: SearchSettings
    space: SearchSpace

    @model_validator(mode="after")
    def _trials_can_run(self) -> "SearchSpec":
        check_space(self.space, self.search.retrain_steps)
        return self


def check_space(space: ByName | list[ByName], retrain_steps: int) -> None:
    """Refuse a space with settings that trials do not have or cannot run.

    Raises:
        ValueError: says where it is wrong.
    """
    from dynopt_ray.cluster import Space, check_config

    for config in Space.parse(space).probes():
        checked_by(lambda probe: check_config(probe, retrain_steps))(config)
