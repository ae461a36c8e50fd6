"""A rule that fits widths to the size of the data."""

import math
from dataclasses import dataclass

from dynopt_ray.policies.actions import ActionMask, legal_action
from dynopt_ray.policies.observation import Observation, feature


@dataclass(frozen=True)
class DataSizedWidths:
    """Shrink or grow until the data has about a given number of samples per weight.

    Attributes:
        samples_per_weight: shrink while there are fewer training samples per non-zero weight than
            this; above 0.
        slack: grow while there are more than `slack` times as many samples per weight; above 1.

    Raises:
        ValueError: `samples_per_weight` is not above 0, or `slack` is not above 1.
    """

    samples_per_weight: float = 0.5
    slack: float = 2.0

    def __post_init__(self) -> None:
        if not self.samples_per_weight > 0:
            raise ValueError(f"samples_per_weight is {self.samples_per_weight}; it must be above 0")
        if not self.slack > 1:
            raise ValueError(
                f"slack is {self.slack}; it must be above 1, or widths would oscillate"
            )

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """Return shrink, grow or keep."""
        have = feature(observation, "samples_per_weight")
        wanted = math.log10(self.samples_per_weight)
        if have < wanted:
            return legal_action("shrink", action_mask)
        if have > wanted + math.log10(self.slack):
            return legal_action("grow", action_mask)
        return legal_action("keep", action_mask)
