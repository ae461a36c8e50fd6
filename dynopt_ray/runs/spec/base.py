"""The keys that specs of several kinds share."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from dynopt_ray.devices import AUTO, Precision
from dynopt_ray.policies import DEFAULT_COST, ChargedCost, CostMixture
from dynopt_ray.runs.spec.fields import DeviceField, OptimizerField, Phase, TaskField
from dynopt_ray.runs.spec.validation import Strict

_LARGEST_FRACTION = 10
_LARGEST_SEED = 2**32 - 1  # NumPy's generators take no larger ones
_MOST_THREADS = 1_024  # starting millions of threads ends the process, or the machine


class Spec(Strict):
    """The keys of every spec.

    Attributes:
        kind: the kind of run, which determines the other keys.
        seed: seed of all random draws.
        num_threads: number of torch's threads in this process, at most 1,024. None leaves the
            choice to torch. Small networks are much faster with one thread.
        device: where networks compute: "auto" is the GPU if there is one to use, or else the CPU.
            Trials of a search use a GPU only if `search.gpus_per_trial` grants it, and learners in
            actors only if `learner.num_gpus` does.
        precision: "float32", "tf32" or "bf16"; see `dynopt_ray.devices.Precision`.
        deterministic: whether a GPU gives the same bits for the same seed. Slower.
    """

    kind: str
    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED)
    num_threads: int | None = Field(default=None, ge=1, le=_MOST_THREADS)
    device: DeviceField = AUTO
    precision: Precision = "float32"
    deterministic: bool = False


class NetworkSpec(Spec):
    """A spec with a task and a network, which is trained on the task or loaded.

    Attributes:
        task: the name of a task, or a mapping with `name` and its options.
        start: a run directory or the file of a network to load. None trains a new network.
        optimizer: the name of an optimizer, or a mapping with `name` and its options, without the
            learning rate.
        train: how a new network is trained. None if one is loaded.
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
                "of a trained one; --set train=null removes train from the spec"
            )
        return self


class UtilitySpec(NetworkSpec):
    """A spec of a run that maximises a utility.

    Attributes:
        cost_weight: λ of utility = accuracy − λ · relative cost.
        cost: the cost that utility charges for: params, nonzero, flops or bytes, or several with
            their weights, such as {flops: 1, nonzero: 1}.
    """

    cost_weight: float = Field(default=0.1, ge=0)
    cost: ChargedCost | dict[ChargedCost, float] = Field(
        default_factory=lambda: dict.fromkeys(DEFAULT_COST.kinds, 1.0)
    )

    @field_validator("cost")
    @classmethod
    def _is_mixture(cls, cost: ChargedCost | dict[ChargedCost, float]) -> Any:
        CostMixture.of(cost)
        return cost


def _check_fraction(value: float) -> float:
    # 2 may be a budget for growing. 50 is rather meant as a percentage, and 5000 as a whole cost.
    if value > _LARGEST_FRACTION:
        raise ValueError(
            f"must be a fraction of the cost at the start, e.g. 0.5 for half of it, not {value:g}"
        )
    return value


CostFraction = Annotated[float, Field(gt=0), AfterValidator(_check_fraction)]


class CostFractions(Strict):
    """Limits on costs, each as a fraction of the cost at the start; None is no limit."""

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
