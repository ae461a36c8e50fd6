"""A rule that shrinks groups with useless units."""

from dataclasses import dataclass

from dynopt_ray.policies.actions import ActionMask, legal_action
from dynopt_ray.policies.observation import Observation, feature


@dataclass(frozen=True)
class UselessShrinking:
    """Shrink the group under the cursor if many of its units are dead or redundant.

    Attributes:
        smallest_share: shrink if at least this fraction of the group's units is dead or redundant
            (points the same way as another unit), in (0, 1].

    Raises:
        ValueError: the fraction is outside (0, 1].
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
