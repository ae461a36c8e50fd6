"""What specs have in common."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dynopt_ray.runs.spec.fields import OptimizerConfig, Phase, TaskConfig
from dynopt_ray.runs.spec.validation import Strict

CostKind = Literal["nonzero", "params", "flops", "bytes"]

_LARGEST_FRACTION = 10


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


def _check_fraction(value: float) -> float:
    # Twice as much as at the start is a budget for growing; 50 is a percentage, 5000 a figure.
    if value > _LARGEST_FRACTION:
        raise ValueError(
            f"must be a fraction of the cost at the start, e.g. 0.5 for half of it, not {value:g}"
        )
    return value


Fraction = Annotated[float, Field(gt=0), AfterValidator(_check_fraction)]


class Fractions(Strict):
    """Of each cost, the fraction of what it is at the start that may be left."""

    params: Fraction | None = None
    nonzero: Fraction | None = None
    flops: Fraction | None = None
    bytes: Fraction | None = None
    latency_ms: Fraction | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> "Fractions":
        if not any(self.model_dump().values()):
            raise ValueError("a budget names at least one cost, e.g. {flops: 0.5}")
        return self
