"""Rules: policies written by hand, beside which a learned one has to justify itself.

Each looks at one thing and keeps where that is in order.
"""

import math
from dataclasses import dataclass

from dynopt_ray.policies.actions import Action, ActionMask, legal_action
from dynopt_ray.policies.observation import FEATURES, Observation


@dataclass(frozen=True)
class StalledGrowth:
    """Grow when the training loss has stalled and the gap to validation is small.

    A loss that no longer falls shows that the network has learned what it can; a small gap shows
    that more capacity would not only be used to memorise.

    Attributes:
        stall: the loss has stalled when it fell by less than this share since the last decision.
        largest_gap: the largest validation loss − training loss at which growing makes sense.
        good_loss: below this training loss there is nothing left to gain.

    Raises:
        ValueError: a number that is negative or not finite.
    """

    stall: float = 0.02
    largest_gap: float = 0.1
    good_loss: float = 0.02

    def __post_init__(self) -> None:
        for name in ("stall", "largest_gap", "good_loss"):
            _check_at_least_zero(name, getattr(self, name))

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """Grow or keep."""
        stalled = feature(observation, "train_loss_change") > -self.stall
        general = feature(observation, "loss_gap") <= self.largest_gap
        unfinished = feature(observation, "train_loss") > math.log1p(self.good_loss)
        grows = stalled and general and unfinished
        return legal_action(Action.GROW if grows else Action.KEEP, action_mask)


@dataclass(frozen=True)
class UselessShrinking:
    """Shrink where many units are dead or redundant.

    Attributes:
        smallest_share: shrink when at least this share of the group's units is dead or points
            the same way as another.

    Raises:
        ValueError: a share outside (0, 1].
    """

    smallest_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.smallest_share <= 1:
            raise ValueError(f"smallest_share is {self.smallest_share}; it must be in (0, 1]")

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """Shrink or keep."""
        share = feature(observation, "dead") + feature(observation, "redundant")
        shrinks = share >= self.smallest_share
        return legal_action(Action.SHRINK if shrinks else Action.KEEP, action_mask)


@dataclass(frozen=True)
class DataSizedWidths:
    """Set widths from the data's size: so many training samples for each weight.

    Attributes:
        samples_per_weight: shrink while there are fewer samples per non-zero weight than this.
        slack: grow while there are more than `slack` times as many.

    Raises:
        ValueError: `samples_per_weight` is not above 0, or `slack` not above 1.
    """

    samples_per_weight: float = 0.5
    slack: float = 2.0

    def __post_init__(self) -> None:
        if not self.samples_per_weight > 0:
            raise ValueError(f"samples_per_weight is {self.samples_per_weight}; it must be above 0")
        if not self.slack > 1:
            raise ValueError(
                f"slack is {self.slack}; it must be above 1, or widths would go to and fro"
            )

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """Shrink, grow or keep."""
        have = feature(observation, "samples_per_weight")
        wanted = math.log10(self.samples_per_weight)
        if have < wanted:
            return legal_action(Action.SHRINK, action_mask)
        if have > wanted + math.log10(self.slack):
            return legal_action(Action.GROW, action_mask)
        return legal_action(Action.KEEP, action_mask)


def feature(observation: Observation, name: str) -> float:
    """One feature of an observation by name."""
    return float(observation[_INDEX[name]])


_INDEX = {name: index for index, name in enumerate(FEATURES)}


def _check_at_least_zero(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}; it must be a finite number of at least 0")
