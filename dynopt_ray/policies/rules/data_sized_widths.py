"""A rule that sets widths from the size of the data."""

import math
from dataclasses import dataclass

from dynopt_ray.policies.actions import ActionMask, legal_action
from dynopt_ray.policies.observation import Observation, feature


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
            return legal_action("shrink", action_mask)
        if have > wanted + math.log10(self.slack):
            return legal_action("grow", action_mask)
        return legal_action("keep", action_mask)
