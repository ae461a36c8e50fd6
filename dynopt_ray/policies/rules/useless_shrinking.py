"""A rule that shrinks groups with useless units."""

from dataclasses import dataclass

from dynopt_ray.policies.actions import ActionMask, legal_action
from dynopt_ray.policies.observation import Observation, feature


@dataclass(frozen=True)
class UselessShrinking:
    """Shrink the group under the cursor if many of its units are dead or redundant.

    Attributes:
        smallest_share: shrink if the fractions of dead units and of redundant units (those that
            point the same way as another) add up to at least this; in (0, 1].

    Raises:
        ValueError: `smallest_share` is outside (0, 1].
    """

    smallest_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.smallest_share <= 1:
            raise ValueError(f"smallest_share is {self.smallest_share}; it must be in (0, 1]")

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """Return shrink or keep."""
        share = feature(observation, "dead") + feature(observation, "redundant")
        shrinks = share >= self.smallest_share
        return legal_action("shrink" if shrinks else "keep", action_mask)
