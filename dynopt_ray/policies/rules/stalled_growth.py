"""A rule that grows groups when training has stalled."""

import math
from dataclasses import dataclass

from dynopt_ray.policies.actions import ActionMask, legal_action
from dynopt_ray.policies.observation import Observation, feature


@dataclass(frozen=True)
class StalledGrowth:
    """Grow when the training loss has stalled and the gap to validation is small.

    A training loss that no longer falls shows that the network has learned what it can. A small gap
    shows that more capacity would not just serve to memorise the training data.

    Attributes:
        stall: the training loss has stalled if it fell by less than this fraction since the
            previous decision.
        largest_gap: the largest difference validation loss − training loss at which to grow.
        good_loss: at or below this training loss, growing has nothing left to gain.

    Raises:
        ValueError: a number is negative or not finite.
    """

    stall: float = 0.02
    largest_gap: float = 0.1
    good_loss: float = 0.02

    def __post_init__(self) -> None:
        for name in ("stall", "largest_gap", "good_loss"):
            _check_at_least_zero(name, getattr(self, name))

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """Return grow or keep."""
        stalled = feature(observation, "train_loss_change") > -self.stall
        general = feature(observation, "loss_gap") <= self.largest_gap
        unfinished = feature(observation, "train_loss") > math.log1p(self.good_loss)
        grows = stalled and general and unfinished
        return legal_action("grow" if grows else "keep", action_mask)


def _check_at_least_zero(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}; it must be a finite number of at least 0")
