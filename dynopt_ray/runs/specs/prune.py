"""`kind: prune`."""

from typing import Literal

from pydantic import Field, model_validator

from dynopt_ray.runs.fields import Criterion, Phase, RecoveryConfig
from dynopt_ray.runs.specs.base import Fractions, NetworkSpec
from dynopt_ray.runs.validation import Strict


class TargetSpec(Strict):
    """How far to prune: one of these.

    Attributes:
        remove: the fraction of units (or weights) that goes.
        threshold: what scores below this goes.
        budget: the fraction of costs that may be left.
    """

    remove: float | None = Field(default=None, gt=0, lt=1)
    threshold: float | None = Field(default=None, gt=0)
    budget: Fractions | None = None

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


class PruneSettings(Strict):
    """The source article's loop: score, remove, give back, retrain, compare.

    Attributes:
        target: how far to go.
        criterion: what is important: a name, or a mapping with `name` and its arguments.
        granularity: "unit" makes tensors smaller, "weight" holds single weights at zero.
        scope: "layer" removes the same share everywhere, "global" the least important anywhere.
        rounds: in how many cuts the target is approached.
        retrain: what follows each cut.
        compensate: refit what reads removed units.
        recovery: "random", "greedy" or a mapping: gives back a part of each cut.
    """

    target: TargetSpec
    criterion: Criterion = "magnitude"
    granularity: Literal["unit", "weight"] = "unit"
    scope: Literal["global", "layer"] = "global"
    rounds: int = Field(default=1, ge=1)
    retrain: Phase | None = None
    compensate: bool = True
    recovery: RecoveryConfig = None


class PruneSpec(NetworkSpec):
    """Train (or load), prune and retrain one network."""

    kind: Literal["prune"]
    prune: PruneSettings
