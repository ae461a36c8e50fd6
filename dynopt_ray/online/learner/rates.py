"""The learning rate of each update: the optimizer's own or a computed rate, times a boost."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dynopt_ray.plugins import build
from dynopt_ray.schedules import Schedule, constant
from dynopt_ray.training import RateController

RateConfig = float | Schedule | RateController | str | Mapping[str, Any]
"""The values that a learner accepts as `lr`; see `Rates`."""


class Rates:
    """Sets the learning rates of an optimizer's parameter groups before each update.

    Args:
        model: the network that learns.
        optimizer: the optimizer whose rates are set.
        lr: one rate for all groups, a schedule (update number -> rate for all groups), a
            controller of this optimizer, or the name of a controller, with its arguments if it
            needs any. None keeps the present rate of each group.

    Raises:
        ValueError: a rate is negative or not finite.
        UnknownNameError: no controller has this name.
        SpecError: the controller does not accept its arguments.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, lr: RateConfig | None
    ) -> None:
        self._optimizer = optimizer
        if isinstance(lr, int | float):
            _check(lr, "the learning rate")
            lr = constant(lr)
        elif isinstance(lr, str | Mapping):
            made: RateController = build("lr_controllers", lr, model=model, optimizer=optimizer)
            lr = made
        self.controller = lr if isinstance(lr, RateController) else None
        self._schedule = None if lr is None or isinstance(lr, RateController) else lr
        self._own = [float(group["lr"]) for group in optimizer.param_groups]
        self._applied = 1.0
        self.boost = 1.0
        """The factor by which every rate is multiplied; reactions raise it on drift."""

    def set(self, update: int) -> None:
        """Set the rates for an update, which is given by its number (from 0).

        Raises:
            ValueError: the schedule returns a rate that is negative or not finite.
        """
        if self.controller is not None:
            self._boost_those_there_are()
            return
        if self._schedule is None and self.boost == self._applied == 1:
            # Leave the rates to the user, who may change them by hand or with a scheduler.
            return
        wanted = None if self._schedule is None else self._schedule(update)
        if wanted is not None:
            _check(wanted, f"the learning rate for update {update}")
        for group, own in zip(self._optimizer.param_groups, self._own, strict=True):
            group["lr"] = (own if wanted is None else wanted) * self.boost
        self._applied = self.boost

    def observe(self, loss: float) -> None:
        """Pass the loss of the latest events to the controller, if there is one."""
        if self.controller is not None:
            self.controller.observe(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the groups' own rates, the boost and the controller's state."""
        return {
            "own": list(self._own),
            "boost": self.boost,
            "applied": self._applied,
            "controller": None if self.controller is None else self.controller.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the groups' own rates, the boost and the controller's state."""
        self._own = list(state["own"])
        self.boost = state["boost"]
        self._applied = state["applied"]
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])

    def _boost_those_there_are(self) -> None:
        """Replace the last boost, which the optimizer's rates still contain, by the present one."""
        if self.boost != self._applied:
            for group in self._optimizer.param_groups:
                group["lr"] = group["lr"] * (self.boost / self._applied)
            self._applied = self.boost


def _check(rate: float, what: str) -> None:
    if not 0 <= rate < math.inf:
        raise ValueError(f"{what} is {rate}; it must be finite and at least 0")
