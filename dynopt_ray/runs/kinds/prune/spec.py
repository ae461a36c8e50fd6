"""The spec of `kind: prune`."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dynopt_ray.errors import SpecError, did_you_mean
from dynopt_ray.runs.kind import Kind, WorkPart, training_work
from dynopt_ray.runs.spec import (
    ByName,
    CostFractions,
    CriterionField,
    Fills,
    NetworkSpec,
    Phase,
    RecoveryField,
    Strict,
    checked_by,
)
from dynopt_ray.schedules import Schedule
from dynopt_ray.training import (
    GRANULARITIES,
    MOST_ROUNDS,
    Distillation,
    Pattern,
    Regrowth,
    make_rate,
    make_recovery,
    make_schedule,
    round_shares,
)


class TargetSpec(Strict):
    """How far to prune: exactly one of these.

    Attributes:
        remove: fraction of units (or weights) to remove, in (0, 1).
        threshold: units (or weights) with a score below this are removed; > 0.
        budget: fractions of costs that may be left.
    """

    remove: float | None = Field(default=None, gt=0, lt=1)
    threshold: float | None = Field(default=None, gt=0)
    budget: CostFractions | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "TargetSpec":
        names = ("remove", "threshold", "budget")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of remove (a fraction), threshold (a score) and budget (a "
                f"fraction per cost), not {' and '.join(given) or 'none'}"
            )
        return self


def prune_schedule(config: ByName | None, rounds: int) -> Schedule | None:
    """Return the schedule of rounds that plain data describe; None means equal steps.

    Raises:
        SpecError, UnknownNameError: there is no such schedule, or it refuses its arguments.
        ValueError: its fractions do not rise to 1.
    """
    if config is None:
        return None
    schedule = make_schedule(config, rounds)
    round_shares("prune", rounds, schedule)
    return schedule


class PruneSettings(Strict):
    """The article's loop: score, remove, give back, retrain, compare.

    Attributes:
        target: how far to prune. None if the granularity is a pattern, which determines it.
        criterion: the criterion: its name, or a mapping with `name` and its arguments.
        granularity: "unit" makes tensors smaller. "weight" holds single weights at zero. "2:4" (or
            another N:M) leaves at most 2 of every 4 neighbouring weights.
        scope: "layer" removes the same fraction of each group (or parameter). "global" removes the
            least important units (or weights) of the whole network.
        rounds: number of cuts in which the target is approached.
        schedule: round -> fraction of the way to the target, rising to 1. None means equal steps.
        min_widths: group name -> fewest units to keep.
        retrain: the training after each cut; None for none.
        distillation: makes retraining learn from the network before pruning, too; None does not.
        compensate: whether to refit the layers that read removed units or lost weights.
        recovery: "random", "greedy" or a mapping; gives back a part of each cut. None gives back
            nothing.
    """

    target: TargetSpec | None = None
    criterion: CriterionField = "magnitude"
    granularity: str = "unit"
    scope: Literal["global", "layer"] = "global"
    rounds: int = Field(default=1, ge=1, le=MOST_ROUNDS)
    schedule: ByName | None = None
    min_widths: dict[str, Annotated[int, Field(ge=1)]] | None = None
    retrain: Phase | None = None
    distillation: Annotated[Distillation, Fills(Distillation)] | None = None
    compensate: bool = True
    recovery: RecoveryField = None

    @field_validator("granularity", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        if isinstance(value, int):
            raise ValueError(f'YAML reads 2:4 as a number (here {value}); write "2:4" in quotes')
        if isinstance(value, str) and value not in GRANULARITIES and not Pattern.parse(value):
            hint = did_you_mean(value, GRANULARITIES)
            raise ValueError(f'must be "unit", "weight" or a pattern such as "2:4".{hint}')
        return value

    @field_validator("min_widths", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """Turn numbers into names: YAML reads group names such as 0 and 2 as numbers."""
        if not isinstance(value, dict):
            return value
        return {str(k) if type(k) is int else k: width for k, width in value.items()}

    @field_validator("schedule")
    @classmethod
    def _rises(cls, value: ByName | None, info: ValidationInfo) -> ByName | None:
        rounds = info.data.get("rounds", 1)
        checked_by(lambda config: prune_schedule(config, rounds))(value)
        return value

    @field_validator("retrain")
    @classmethod
    def _of_one_network(cls, value: Phase | None) -> Phase | None:
        if value is None:
            return None
        num_steps = value.num_steps

        def check(rate: Any) -> None:
            if make_rate(rate, num_steps).population is not None:
                raise SpecError("a population trains several networks; only one is retrained")

        checked_by(check)(value.lr)
        return value

    @model_validator(mode="after")
    def _aim(self) -> "PruneSettings":
        is_pattern = self.granularity not in GRANULARITIES
        if is_pattern and (self.target or self.recovery):
            raise ValueError(
                f"granularity {self.granularity!r} itself determines what is removed; leave out "
                "target and recovery"
            )
        if not is_pattern and self.target is None:
            raise ValueError("target is missing, e.g. target: {remove: 0.5}")
        if self.granularity != "unit" and self.min_widths:
            raise ValueError('min_widths count units; use granularity "unit" with them')
        if self.distillation and self.retrain is None:
            raise ValueError("distillation is part of retraining; give retrain")
        recovery = make_recovery(self.recovery)
        if self.granularity == "unit" and isinstance(recovery, Regrowth):
            raise ValueError('regrowth masks weights; use granularity "weight" with it')
        budget = self.target and self.target.budget
        others = budget and any(v for k, v in budget.model_dump().items() if k != "nonzero")
        if self.granularity == "weight" and others:
            raise ValueError(
                'granularity "weight" lowers no cost except nonzero; limit nonzero, or use '
                'granularity "unit"'
            )
        return self


class PruneSpec(NetworkSpec):
    """Train or load one network, prune it, and retrain it."""

    kind: Literal["prune"]
    prune: PruneSettings


def prune_work(spec: PruneSpec) -> tuple[WorkPart, ...]:
    """Return the training and the retraining of all rounds."""
    settings = spec.prune
    steps = 0 if settings.retrain is None else settings.rounds * settings.retrain.num_steps
    return (*training_work(spec), WorkPart("prune", steps, note=f"{settings.rounds} rounds"))


KIND = Kind(PruneSpec, "dynopt_ray.runs.kinds.prune.runner:prepare", work=prune_work)
