"""Learning rates as specs and search spaces write them."""

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
    """A learning rate: a schedule, or where one begins that follows training.

    Attributes:
        initial: the rate at the start.
        schedule: the rate at each step.
        controller: makes what sets the rate instead.
        population: makes the members whose rates are bred instead.
    """

    initial: float
    schedule: Schedule | None = None
    controller: ControllerFactory | None = None
    population: PopulationStart | None = None


def make_rate(value: float | Mapping[str, Any], num_steps: int) -> Rate:
    """The learning rate that a number or a mapping stands for, which may follow training.

    Args:
        value: what `make_schedule` takes, or the name of one of the lr_controllers, or
            "population", with `initial`, the rate it starts from, and its arguments.
        num_steps: the length of the training.

    Raises:
        SpecError: neither, or arguments that it does not have or refuses.
        UnknownNameError: no schedule and no controller of this name.

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
    # Made once for another network, wrong arguments show before anything starts.
    some = nn.Linear(1, 1)
    controller(some, torch.optim.SGD(some.parameters(), lr=initial)).detach()
    return Rate(initial, controller=controller)


def make_schedule(value: float | Mapping[str, Any], num_steps: int) -> Schedule:
    """The learning rate that a number or a mapping stands for.

    Args:
        value: a rate, or a schedule's name and arguments.
        num_steps: the length of the training; schedules with an end take it unless `value`
            names another.

    Raises:
        SpecError: neither, or arguments that the schedule refuses.
        UnknownNameError: no schedule of this name.

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
    """Whether a rate's name is a controller's or the population's, and not a schedule's."""
    if not isinstance(name, str) or name == _POPULATION:
        return name == _POPULATION
    if ":" in name:  # either may be written so; controllers are made for an optimizer
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
        # In wrappers (warm-up) `num_steps` is the length of something else.
        if "num_steps" in parameters and "schedule" not in parameters:
            return {"num_steps": num_steps, **config}
    return dict(config)
