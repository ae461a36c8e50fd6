"""The spec of `kind: search`."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, model_validator

from dynopt_ray.cluster import (
    ClusterNeed,
    PackSize,
    PruneTrial,
    Space,
    check_config,
    check_limits,
    check_objective,
    check_size,
    draws,
    search,
)
from dynopt_ray.errors import SpecError, short
from dynopt_ray.runs.kind import Kind, WorkPart, training_work
from dynopt_ray.runs.spec import (
    SchedulerField,
    SearcherField,
    Spec,
    Strict,
    TrackerField,
    UtilitySpec,
    checked_by,
    default_of,
)


def _space(value: Any) -> Space:
    try:
        return Space.parse(value)
    except SpecError as error:
        raise ValueError(str(error)) from None  # pydantic collects ValueErrors only


def _pack(value: Any) -> PackSize:
    try:
        return check_size(value)
    except SpecError as error:
        raise ValueError(str(error)) from None


PackField = Annotated[PackSize, PlainValidator(_pack)]
"""The number of trials of a pack, "auto", or None."""


def _names_code(value: str | dict[str, Any]) -> str | dict[str, Any]:
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str) or ":" not in name:
        raise ValueError(
            "must be module:function of a trial, or a mapping whose name is the module:attribute "
            f"of what makes one, not {short(value)}"
        )
    return value


SearchSpace = Annotated[Space, PlainValidator(_space), PlainSerializer(lambda space: space.plain)]
"""Lists are choices, {low, high, log} are ranges, other values are fixed.

A list of such mappings is the union of their spaces.
"""


class SearchOptions(Strict):
    """How to search, whatever the trials do.

    Attributes:
        num_trials: number of trials. A grid needs none and then tries all its configurations.
        searcher: "optuna", "random", "grid" or a plugin; draws configurations.
        scheduler: "asha", "hyperband", "median", "pbt", "pb2", a plugin, or None; stops, pauses or
            changes trials.
        num_reports: number of measurements in a trial, at which it may be stopped.
        cpus_per_trial: number of CPU cores that a trial holds; it uses one thread per core.
        gpus_per_trial: number of GPUs that a trial holds. With a fraction, trials share a GPU.
        max_concurrent: maximum number of slots, in each of which a trial or a pack runs; None is as
            many as there is room for.
        pack: number of trials that share a slot, "auto" to measure it, or None; see
            `dynopt_ray.cluster.search`.
        accelerator_type: kind of GPU that a trial needs, such as "H100".
        resources: custom resources that a trial reserves: name -> amount.
        order: "arrival" decides about measurements as they arrive; "drawn" in the order in which
            trials were drawn, so that a search with several trials at once repeats.
        choice: which finished trial wins: "best" has the highest utility; "one_standard_error" is
            the cheapest that cannot be told from it on the validation rows.
        max_failures: how often a trial whose process died is continued before it counts as failed.
        time_limit_s: the time in seconds after which a trial is ended, or None.
        objective: what the searcher looks for: "utility", "pareto" (a front of high accuracy and
            low cost), or a list such as [accuracy, flops, params] for a front of other costs.
        warm_start: run directories of earlier searches, from whose trials the searcher learns.
        trackers: "tensorboard", "mlflow" or plugins, which show the trials while they run.
        local: whether to run the trials in this process, one at a time, without a cluster.
    """

    num_trials: int | None = default_of(search, "num_trials")
    searcher: SearcherField = default_of(search, "searcher")
    scheduler: SchedulerField | None = default_of(search, "scheduler")
    num_reports: int = default_of(search, "num_reports")
    cpus_per_trial: float = default_of(search, "cpus_per_trial")
    gpus_per_trial: float = default_of(search, "gpus_per_trial")
    max_concurrent: int | None = default_of(search, "max_concurrent")
    pack: PackField = default_of(search, "pack")
    accelerator_type: str | None = default_of(search, "accelerator_type")
    resources: dict[str, float] | None = default_of(search, "resources")
    order: Literal["arrival", "drawn"] = default_of(search, "order")
    choice: Literal["one_standard_error", "best"] = default_of(search, "choice")
    max_failures: int = default_of(search, "max_failures")
    time_limit_s: float | None = default_of(search, "time_limit_s")
    objective: Literal["utility", "pareto"] | list[str] = "utility"
    warm_start: tuple[str, ...] = Field(default=(), strict=False)
    trackers: tuple[TrackerField, ...] = Field(default=(), strict=False)
    local: bool = default_of(search, "local")

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        check_limits(
            num_trials=self.num_trials,
            num_reports=self.num_reports,
            cpus_per_trial=self.cpus_per_trial,
            gpus_per_trial=self.gpus_per_trial,
            max_concurrent=self.max_concurrent,
            max_failures=self.max_failures,
            time_limit_s=self.time_limit_s,
        )
        check_objective(self.objective)
        return self


class SearchSettings(SearchOptions):
    """How to search pruning and retraining. Further attributes are those of `SearchOptions`.

    Attributes:
        find_rate: whether to begin with a trial in the middle of the space, at the learning rate
            that the range test (`training.find_rate`) suggests for it.
        retrain_steps: number of optimizer steps of each trial.
    """

    find_rate: bool = False
    retrain_steps: int = Field(default=PruneTrial.retrain_steps, ge=1)


class SearchSpec(UtilitySpec):
    """Search pruning and retraining of one trained network for the best utility.

    Attributes:
        search: how to search.
        space: the settings that trials may be given; see `PruneConfig` in
            dynopt_ray/cluster/pruning_trials/prune_config.py.
    """

    kind: Literal["search"]
    search: SearchSettings
    space: SearchSpace

    @model_validator(mode="after")
    def _trials_can_run(self) -> "SearchSpec":
        check_space(self.space, self.search.retrain_steps)
        return self


class OwnTrialSpec(Spec):
    """Search the configurations of a trial of one's own.

    Attributes:
        trial: `module:function` of a trial, which is called with a configuration and gives
            measurements; see `dynopt_ray.cluster.search`. Or a mapping with `name`, the
            `module:attribute` of what makes a trial, and its arguments.
        cost_weight: λ of utility = accuracy − λ · cost.
        search: how to search.
        space: the configurations of the trials.
    """

    kind: Literal["search"]
    trial: Annotated[str | dict[str, Any], AfterValidator(_names_code)]
    cost_weight: float = Field(default=0.1, ge=0)
    search: SearchOptions
    space: SearchSpace


def check_space(space: Space, retrain_steps: int) -> None:
    """Refuse a space with settings that trials do not have or cannot run.

    Raises:
        ValueError: the message names the setting.
    """
    for config in space.probes():
        checked_by(lambda probe: check_config(probe, retrain_steps))(config)


def search_need(settings: SearchOptions) -> ClusterNeed | None:
    """Return what a search needs from a cluster, or None if it runs in this process."""
    if settings.local:
        return None
    return ClusterNeed(
        cpus=settings.cpus_per_trial,
        gpus=settings.gpus_per_trial,
        accelerator_type=settings.accelerator_type,
        resources=settings.resources or {},
    )


def search_work(settings: SearchSettings, space: Space) -> WorkPart:
    """Return the retraining of all trials."""
    _, trials = draws(settings.searcher, space, num_trials=settings.num_trials)
    note = f"{trials} trials of {settings.retrain_steps} steps"
    if settings.pack is not None:
        note += f", in packs ({settings.pack}), which are faster than estimated here"
    if settings.scheduler is not None:
        note += "; the scheduler stops some early"
    return WorkPart(
        "search",
        trials * settings.retrain_steps,
        in_slots=not settings.local,
        note=note,
    )


def _work(spec: SearchSpec | OwnTrialSpec) -> tuple[WorkPart, ...]:
    if isinstance(spec, SearchSpec):
        return (*training_work(spec), search_work(spec.search, spec.space))
    _, trials = draws(spec.search.searcher, spec.space, num_trials=spec.search.num_trials)
    return (WorkPart("search", trials, "trials", in_slots=not spec.search.local),)


KIND = Kind(
    SearchSpec,
    "dynopt_ray.runs.kinds.search.runner:prepare",
    work=_work,
    need=lambda spec: search_need(spec.search),
    rebuild="dynopt_ray.runs.kinds.search.tables:rebuild",
    variants={"trial": OwnTrialSpec},
)
