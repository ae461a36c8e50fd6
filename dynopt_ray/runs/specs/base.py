"""What specs have in common."""

from typing import Literal

from pydantic import Field, model_validator

from dynopt_ray.runs.fields import OptimizerConfig, Phase, TaskConfig
from dynopt_ray.runs.validation import Strict

CostKind = Literal["nonzero", "params", "flops", "bytes"]


class Spec(Strict):
    """What every spec says.

    Attributes:
        kind: which other keys there are.
        seed: of everything that is drawn.
        num_threads: threads that torch computes with in this process; None is torch's own choice.
            Small networks are much faster with one.
    """

    kind: str
    seed: int = Field(default=0, ge=0)
    num_threads: int | None = Field(default=None, ge=1)


class NetworkSpec(Spec):
    """What most kinds begin with: a task, and a network trained on it or loaded.

    Attributes:
        task: a task's name, or a mapping with `name` and its options.
        start: a run directory, or the file of a network: where training is not wanted.
        optimizer: a name, or a mapping with `name` and its options, without the rate.
        train: how a new network is trained.
    """

    task: TaskConfig = Field(description="a task's name, or a mapping with name and options")
    start: str | None = None
    optimizer: OptimizerConfig = "adam"
    train: Phase | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "NetworkSpec":
        if (self.start is None) == (self.train is None):
            raise ValueError(
                "give either train, to train a new network, or start, the run directory or file "
                "of a trained one; --set train=null takes away what the spec has"
            )
        return self


# Twice as much as at the start is a budget for growing; thousands are figures.
_FRACTION = Field(default=None, gt=0, le=100, description="a fraction of the cost at the start")


class Fractions(Strict):
    """Of each cost, the fraction of what it is at the start that may be left."""

    params: float | None = _FRACTION
    nonzero: float | None = _FRACTION
    flops: float | None = _FRACTION
    bytes: float | None = _FRACTION
    latency_ms: float | None = _FRACTION

    @model_validator(mode="after")
    def _at_least_one(self) -> "Fractions":
        if not any(self.model_dump().values()):
            raise ValueError("a budget names at least one cost, e.g. {flops: 0.5}")
        return self
