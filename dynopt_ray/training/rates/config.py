"""Build learning rates from their form in specs and search spaces."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError, UnknownNameError
from dynopt_ray.schedules import Schedule, constant, from_config
from dynopt_ray.training.by_name import make_by_name
from dynopt_ray.training.rates.controller import ControllerFactory, RateController
from dynopt_ray.training.rates.population_based import PopulationStart

_POPULATION = "population"


@dataclass(frozen=True)
class Rate:
    """A learning rate that follows a schedule, a controller or a population.

    Exactly one of `schedule`, `controller` and `population` is given.

    Attributes:
        initial: the rate at the start.
        schedule: step -> rate.
        controller: makes the controller that sets the rate.
        population: makes the population whose members' rates are selected and varied.
    """

    initial: float
    schedule: Schedule | None = None
    controller: ControllerFactory | None = None
    population: PopulationStart | None = None


def make_rate(value: float | Mapping[str, Any], num_steps: int) -> Rate:
    """Return the learning rate that a number or a mapping describes; it may adapt to training.

    Args:
        value: anything that `make_schedule` takes; or a mapping with the name of an LR controller
            or the name "population", with `initial`, the rate to start from, and with its other
            arguments.
        num_steps: length of the training in steps.

    Raises:
        SpecError: the value is neither, or has arguments that are unknown or refused.
        UnknownNameError: no schedule and no LR controller has this name.

    Example:
        >>> make_rate({"name": "plateau", "initial": 0.1, "patience": 2}, num_steps=200).initial
        0.1
    """
    if not (isinstance(value, Mapping) and _follows_training(value.get("name"))):
        schedule = make_schedule(value, num_steps)
        return Rate(float(schedule(0)), schedule)
    if "initial" not in value:
        raise SpecError(f"{value['name']!r} needs initial, the rate that it starts from")
    initial = constant(value["initial"])(0)
    options = {key: given for key, given in value.items() if key != "initial"}
    if value["name"] == _POPULATION:
        return Rate(initial, population=make_by_name(options, "lr", {_POPULATION: PopulationStart}))
    controller = partial(_controller, options)
    # Make it once for a dummy network, so that wrong arguments are found before training starts.
    some = nn.Linear(1, 1)
    controller(some, torch.optim.SGD(some.parameters(), lr=initial)).detach()
    return Rate(initial, controller=controller)


def make_schedule(value: float | Mapping[str, Any], num_steps: int) -> Schedule:
    """Return the learning-rate schedule that a number or a mapping describes.

    Args:
        value: a constant rate, or a mapping with the name and the arguments of a schedule.
        num_steps: length of the training in steps. Schedules of finite length use it unless
            `value` gives its own `num_steps`.

    Raises:
        SpecError: the value is neither, or the schedule refuses its arguments.
        UnknownNameError: no schedule has this name.

    Example:
        >>> make_schedule({"name": "cosine", "initial": 0.1}, num_steps=200)
        cosine(initial=0.1, num_steps=200, final=0.0)
    """
    if isinstance(value, Mapping):
        return from_config(_with_length(value, num_steps))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < torch.inf:
        raise SpecError(
            f"a learning rate is a number of at least 0, or a schedule such as {{name: cosine, "
            f"initial: 0.1}}, not {value!r}"
        )
    return constant(value)


def _follows_training(name: object) -> bool:
    """Return whether a name stands for an LR controller or the population, not a schedule."""
    if not isinstance(name, str) or name == _POPULATION:
        return name == _POPULATION
    if ":" in name:  # "module:name" may be either; only controllers take an optimizer
        return "optimizer" in inspect.signature(plugins.load("lr_controllers", name)).parameters
    controllers, schedules = plugins.names("lr_controllers"), plugins.names("schedules")
    if name not in (*controllers, *schedules):
        known = [*schedules, *controllers, _POPULATION]
        raise UnknownNameError("schedule or LR controller", name, known)
    return name in controllers


def _controller(
    options: Mapping[str, Any], model: nn.Module, optimizer: Optimizer
) -> RateController:
    made: RateController = plugins.build(
        "lr_controllers", options, model=model, optimizer=optimizer
    )
    return made


def _with_length(config: Mapping[str, Any], num_steps: int) -> dict[str, Any]:
    name = config.get("name")
    if isinstance(name, str):
        parameters = inspect.signature(plugins.load("schedules", name)).parameters
        # In schedules that wrap another one, `num_steps` is the length of the warm-up, for example.
        if "num_steps" in parameters and "schedule" not in parameters:
            return {"num_steps": num_steps, **config}
    return dict(config)
