"""The action that keeps the network as it is."""

from dataclasses import dataclass

from dynopt_ray.policies.actions.action import Unchanging


@dataclass(frozen=True)
class Keep(Unchanging):
    """Change nothing; the network is only trained."""

    label: str = "keep"
    ends: bool = False
