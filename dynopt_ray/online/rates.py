"""The learning rate of each update: the optimizer's own, or a schedule's, times a boost."""

from typing import Any

import torch

from dynopt_ray.schedules import Schedule


class Rates:
    """Sets the rates of an optimizer's parameter groups before each update.

    Args:
        optimizer: whose rates are set.
        schedule: update number -> rate of every group; None keeps the groups' own rates as
            they are now.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule | None) -> None:
        self._optimizer = optimizer
        self._schedule = schedule
        self._own = [float(group["lr"]) for group in optimizer.param_groups]
        self._boosted = False
        self.boost = 1.0
        """What every rate is multiplied with; reactions raise it on drift."""

    def set(self, update: int) -> None:
        """Set the rates for the update of this number (from 0)."""
        if self._schedule is None and self.boost == 1 and not self._boosted:
            # The optimizer's rates are then the user's to change, by hand or by a scheduler.
            return
        for group, own in zip(self._optimizer.param_groups, self._own, strict=True):
            group["lr"] = (own if self._schedule is None else self._schedule(update)) * self.boost
        self._boosted = self.boost != 1

    def state_dict(self) -> dict[str, Any]:
        """The groups' own rates and the boost."""
        return {"own": list(self._own), "boost": self.boost, "boosted": self._boosted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace them."""
        self._own = list(state["own"])
        self.boost = state["boost"]
        self._boosted = state["boosted"]
