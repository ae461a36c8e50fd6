"""Build optimizers from their form in specs and search spaces."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import SpecError
from dynopt_ray.training.by_name import make_by_name, name_and_options
from dynopt_ray.training.rates import Cocob

OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "cocob": Cocob,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def make_optimizer(config: str | Mapping[str, Any], model: nn.Module, lr: float) -> Optimizer:
    """Return a torch optimizer over all parameters of a network.

    Args:
        config: a name, or a mapping with "name" and the optimizer's arguments. It must not contain
            `lr`, because schedules set the learning rate.
        model: the network.
        lr: the initial learning rate.

    Raises:
        SpecError: an unknown optimizer, or arguments that it lacks or refuses.
    """
    if "lr" in name_and_options(config, "optimizer", OPTIMIZERS)[1]:
        raise SpecError("the optimizer takes no lr here: the rate is given with the training steps")
    made: Optimizer = make_by_name(
        config, "optimizer", OPTIMIZERS, params=model.parameters(), lr=lr
    )
    return made
