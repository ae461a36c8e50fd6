"""The action that ends the episode."""

from dataclasses import dataclass

from dynopt_ray.policies.actions.action import Unchanging


@dataclass(frozen=True)
class Stop(Unchanging):
    """End the episode now, without further training."""

    label: str = "stop"
    ends: bool = True
