"""Learning rates, optimizers and recoveries as specs and search spaces write them."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError, UnknownNameError, did_you_mean
from dynopt_ray.schedules import Schedule, constant, from_config
from dynopt_ray.training.rates import Cocob, ControllerFactory, RateController
from dynopt_ray.training.rates.population import PopulationStart
from dynopt_ray.training.recovery import Greedy, Random, Recovery
from dynopt_ray.training.regrowth import Regrowth

OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "cocob": Cocob,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
_POPULATION = "population"
RECOVERIES: dict[str, Any] = {"greedy": Greedy, "random": Random, "regrowth": Regrowth}


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
        return Rate(initial, population=_made(options, "lr", {_POPULATION: PopulationStart}))
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


def make_optimizer(config: str | Mapping[str, Any], model: nn.Module, lr: float) -> Optimizer:
    """A torch optimizer over all parameters of a network.

    Args:
        config: a name, or a mapping of it and the optimizer's arguments.
        model: the network.
        lr: its rate at the start. Rates are the schedules' business, so `config` has none.

    Raises:
        SpecError: no such optimizer, or arguments that it does not have or refuses.
    """
    if "lr" in _parts(config, "optimizer", OPTIMIZERS)[1]:
        raise SpecError("the optimizer takes no lr here: the rate is given with the training steps")
    made: Optimizer = _made(config, "optimizer", OPTIMIZERS, params=model.parameters(), lr=lr)
    return made


def make_recovery(config: str | Mapping[str, Any] | None) -> Recovery | Regrowth | None:
    """What gives back a part of cuts: a name, a mapping with arguments, or None.

    Names are "greedy", "random" and "regrowth".

    Raises:
        SpecError: no such recovery, or arguments that it does not have or refuses.
    """
    if config is None:
        return None
    made: Recovery | Regrowth = _made(config, "recovery", RECOVERIES)
    return made


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


def _made(
    config: str | Mapping[str, Any], what: str, known: Mapping[str, Any], **given: Any
) -> Any:
    """What a name, or a mapping of it and its arguments, describes.

    Args:
        config: either of them.
        what: what to call it in messages.
        known: name -> what makes it.
        given: arguments that are ours to give.
    """
    name, options = _parts(config, what, known)
    arguments = [p for p in inspect.signature(known[name]).parameters if p not in given]
    for option in options:
        if option not in arguments:
            raise SpecError(
                f"{name!r} has no argument {option!r}.{did_you_mean(option, arguments)} "
                f"Known: {', '.join(arguments)}."
            )
    try:
        return known[name](**given, **options)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{what} {name!r} refuses its arguments: {error}") from error


def _parts(
    config: str | Mapping[str, Any], what: str, known: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    if isinstance(config, str):
        config = {"name": config}
    if not isinstance(config, Mapping) or "name" not in config:
        raise SpecError(f"{config!r} is neither a name nor a mapping with 'name' for the {what}")
    name = config["name"]
    if name not in known:
        raise SpecError(
            f"no {what} {name!r}.{did_you_mean(str(name), known)} Known: {', '.join(known)}."
        )
    return str(name), {key: value for key, value in config.items() if key != "name"}
