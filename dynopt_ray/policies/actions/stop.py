"""Ending the episode."""

from dataclasses import dataclass

from dynopt_ray.policies.actions.action import Unchanging


@dataclass(frozen=True)
class Stop(Unchanging):
    """End here, without further training."""

    label: str = "stop"
    ends: bool = True
