"""Field types that specs share: plugins by name, learning rates, optimizers, phases."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, field_validator

from dynopt_ray import plugins
from dynopt_ray.devices import AUTO
from dynopt_ray.errors import DynoptError, short
from dynopt_ray.runs.spec.validation import Strict, checked_by

ByName = dict[str, Any]
"""A mapping with `name` and the arguments of the plugin, schedule or optimizer of this name."""


def _plugin(family: plugins.Family) -> PlainValidator:
    """Return a validator for the name of a plugin, or a mapping with its name and arguments.

    Only the name is checked here, and nothing is imported. The arguments are checked when the
    plugin is made.
    """

    def validate(value: Any) -> str | ByName:
        name = value.get("name") if isinstance(value, Mapping) else value
        if not isinstance(name, str):
            raise ValueError(
                f"must be the name of one of the {family}, or a mapping with 'name' and its "
                f"arguments, not {short(value)}"
            )
        try:
            plugins.check_name(family, name)
        except DynoptError as error:
            raise ValueError(str(error)) from None  # pydantic collects ValueErrors only
        return dict(value) if isinstance(value, Mapping) else name

    return PlainValidator(validate)


def _policy(value: Any) -> str | ByName:
    """Check a policy that is given as a mapping. A string may be a path too: see the runner."""
    from dynopt_ray.policies import CUT_POLICIES, make_cut_policy

    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            "must be a rule's name, a mapping with 'name' and its arguments, or the run directory "
            f"or file of a learned policy, not {short(value)}"
        )
    if value.get("name") in CUT_POLICIES:
        checked_by(make_cut_policy)(value)
        return dict(value)
    checked: str | ByName = _plugin("rules").func(value)  # type: ignore[call-arg]
    return checked


def _optimizer(value: Any) -> str | ByName:
    from torch import nn

    from dynopt_ray.training import make_optimizer

    checked_by(lambda config: make_optimizer(config, nn.Linear(1, 1), lr=0.1))(value)
    made: str | ByName = value
    return made


def _recovery(value: Any) -> str | ByName | None:
    from dynopt_ray.training import make_recovery

    made: str | ByName | None = checked_by(make_recovery)(value)
    return made


def _action_set(value: Any) -> object:
    from dynopt_ray.policies import ActionSet

    return ActionSet(value)


def _device(value: str) -> str:
    """Check the name only: the machine that checks a spec may not be the one that runs it."""
    import torch

    if value != AUTO:
        try:
            torch.device(value)
        except RuntimeError:
            raise ValueError(f"must be auto, cpu, cuda or cuda:1, not {short(value)}") from None
    return value


ActionsField = Annotated[
    tuple[str | ByName, ...],
    Field(strict=False),  # YAML has lists but no tuples
    AfterValidator(checked_by(_action_set)),
]
CriterionField = Annotated[str | ByName, _plugin("criteria")]
DeviceField = Annotated[str, AfterValidator(_device)]
DetectorField = Annotated[str | ByName, _plugin("detectors")]
ReactionField = Annotated[str | ByName, _plugin("reactions")]
PolicyField = Annotated[str | ByName, PlainValidator(_policy)]
SchedulerField = Annotated[str | ByName, _plugin("schedulers")]
TrackerField = Annotated[str | ByName, _plugin("trackers")]
SearcherField = Annotated[str | ByName, _plugin("searchers")]
TaskField = Annotated[str | ByName, _plugin("tasks")]
OptimizerField = Annotated[str | ByName, PlainValidator(_optimizer)]
RecoveryField = Annotated[str | ByName | None, PlainValidator(_recovery)]
RateField = Annotated[float | ByName, PlainValidator(lambda value: value)]
"""A learning rate: a number, a schedule or a controller. It is checked with its phase's length."""


class Phase(Strict):
    """Optimizer steps at a learning rate: a number, a schedule, or one that follows training."""

    num_steps: int = Field(ge=1, description="the number of optimizer steps")
    lr: RateField = Field(
        description="a number, or a schedule such as {name: cosine, initial: 0.1}"
    )

    @field_validator("lr")
    @classmethod
    def _fits_the_length(cls, value: Any, info: ValidationInfo) -> Any:
        from dynopt_ray.training import make_rate

        # A wrong num_steps is missing here and has its own error.
        num_steps = info.data.get("num_steps", 1)
        return checked_by(lambda config: make_rate(config, num_steps))(value)
