"""`kind: search`."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from dynopt_ray.cluster import PruneTrial, Space, check_config, check_limits, search
from dynopt_ray.errors import SpecError
from dynopt_ray.runs.kind import Kind
from dynopt_ray.runs.spec import (
    SchedulerField,
    SearcherField,
    Strict,
    UtilitySpec,
    checked_by,
    default_of,
)


def _space(value: Any) -> Space:
    try:
        return Space.parse(value)
    except SpecError as error:
        raise ValueError(str(error)) from None  # pydantic collects ValueErrors only


SearchSpace = Annotated[Space, PlainValidator(_space), PlainSerializer(lambda space: space.plain)]
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

    num_trials: int | None = default_of(search, "num_trials")
    searcher: SearcherField = default_of(search, "searcher")
    scheduler: SchedulerField | None = default_of(search, "scheduler")
    find_rate: bool = False
    retrain_steps: int = Field(default=PruneTrial.retrain_steps, ge=1)
    num_reports: int = default_of(search, "num_reports")
    cpus_per_trial: float = default_of(search, "cpus_per_trial")
    gpus_per_trial: float = default_of(search, "gpus_per_trial")
    max_concurrent: int | None = default_of(search, "max_concurrent")
    local: bool = default_of(search, "local")

    @model_validator(mode="after")
    def _in_range(self) -> "SearchSettings":
        check_limits(
            num_trials=self.num_trials,
            num_reports=self.num_reports,
            cpus_per_trial=self.cpus_per_trial,
            gpus_per_trial=self.gpus_per_trial,
            max_concurrent=self.max_concurrent,
        )
        return self


class SearchSpec(UtilitySpec):
    """Search pruning and retraining of one trained network for the best utility.

    Attributes:
        search: how to search.
        space: what trials may be given; see `PruneSettings` in `dynopt_ray.cluster`.
    """

    kind: Literal["search"]
    search: SearchSettings
    space: SearchSpace

    @model_validator(mode="after")
    def _trials_can_run(self) -> "SearchSpec":
        check_space(self.space, self.search.retrain_steps)
        return self


def check_space(space: Space, retrain_steps: int) -> None:
    """Refuse a space with settings that trials do not have or cannot run.

    Raises:
        ValueError: says where it is wrong.
    """
    for config in space.probes():
        checked_by(lambda probe: check_config(probe, retrain_steps))(config)


KIND = Kind(SearchSpec, "dynopt_ray.runs.kinds.search.runner:prepare")
