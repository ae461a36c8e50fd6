"""What specs have in common."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from dynopt_ray.policies import ChargedCost
from dynopt_ray.runs.spec.fields import OptimizerField, Phase, TaskField
from dynopt_ray.runs.spec.validation import Strict

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

    task: TaskField = Field(description="a task's name, or a mapping with name and options")
    start: str | None = None
    optimizer: OptimizerField = "adam"
    train: Phase | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "NetworkSpec":
        if (self.start is None) == (self.train is None):
            raise ValueError(
                "give either train, to train a new network, or start, the run directory or file "
                "of a trained one; --set train=null takes away what the spec has"
            )
        return self


class UtilitySpec(NetworkSpec):
    """What kinds begin with that maximise a utility.

    Attributes:
        cost_weight: λ of utility = accuracy − λ · relative cost.
        cost: the cost that utility charges for.
    """

    cost_weight: float = Field(default=0.1, ge=0)
    cost: ChargedCost = "nonzero"


def _check_fraction(value: float) -> float:
    # Twice as much as at the start is a budget for growing; 50 is a percentage, 5000 a figure.
    if value > _LARGEST_FRACTION:
        raise ValueError(
            f"must be a fraction of the cost at the start, e.g. 0.5 for half of it, not {value:g}"
        )
    return value


CostFraction = Annotated[float, Field(gt=0), AfterValidator(_check_fraction)]


class CostFractions(Strict):
    """Of each cost, the fraction of what it is at the start that may be left."""

    params: CostFraction | None = None
    nonzero: CostFraction | None = None
    flops: CostFraction | None = None
    bytes: CostFraction | None = None
    latency_ms: CostFraction | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> "CostFractions":
        if not any(self.model_dump().values()):
            raise ValueError("a budget names at least one cost, e.g. {flops: 0.5}")
        return self
