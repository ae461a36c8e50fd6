"""The learning rate of each update: the optimizer's own or computed, times a boost."""

import math
from typing import Any, Protocol, runtime_checkable

import torch

from dynopt_ray import plugins
from dynopt_ray.schedules import Schedule, constant


@runtime_checkable
class RateController(Protocol):
    """A schedule with a memory: the rate follows from the losses seen."""

    def __call__(self, update: int, /) -> float:
        """The rate for the update of this number, from 0."""

    def observe(self, loss: float, /) -> None:
        """Take the loss of the latest events, measured before they were learned from."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state: numbers, strings, lists and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly as the controller that gave `state` would."""


class Rates:
    """Sets the rates of an optimizer's parameter groups before each update.

    Args:
        optimizer: whose rates are set.
        lr: the rate of every group, update number -> that rate, a controller or the name of one;
            None keeps the groups' own rates as they are now.

    Raises:
        ValueError: a rate that is negative or not finite.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, lr: float | Schedule | RateController | str | None
    ) -> None:
        self._optimizer = optimizer
        if isinstance(lr, int | float):
            _check(lr, "the learning rate")
            lr = constant(lr)
        self._lr: Schedule | None = (
            plugins.load("lr_controllers", lr)() if isinstance(lr, str) else lr
        )
        self.controller = self._lr if isinstance(self._lr, RateController) else None
        self._own = [float(group["lr"]) for group in optimizer.param_groups]
        self._boosted = False
        self.boost = 1.0
        """What every rate is multiplied with; reactions raise it on drift."""

    def set(self, update: int) -> None:
        """Set the rates for the update of this number (from 0).

        Raises:
            ValueError: the schedule gives a rate that is negative or not finite.
        """
        if self._lr is None and self.boost == 1 and not self._boosted:
            # The optimizer's rates are then the user's to change, by hand or by a scheduler.
            return
        wanted = None if self._lr is None else self._lr(update)
        if wanted is not None:
            _check(wanted, f"the learning rate for update {update}")
        for group, own in zip(self._optimizer.param_groups, self._own, strict=True):
            group["lr"] = (own if wanted is None else wanted) * self.boost
        self._boosted = self.boost != 1

    def observe(self, loss: float) -> None:
        """Show a controller the loss of the latest events; nothing else looks at it."""
        if self.controller is not None:
            self.controller.observe(loss)

    def state_dict(self) -> dict[str, Any]:
        """The groups' own rates, the boost and the controller's state."""
        return {
            "own": list(self._own),
            "boost": self.boost,
            "boosted": self._boosted,
            "controller": None if self.controller is None else self.controller.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace them."""
        self._own = list(state["own"])
        self.boost = state["boost"]
        self._boosted = state["boosted"]
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])


def _check(rate: float, what: str) -> None:
    if not 0 <= rate < math.inf:
        raise ValueError(f"{what} is {rate}; it must be finite and at least 0")
