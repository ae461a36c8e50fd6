"""`kind: prune`: prune one network with the article's loop."""

from dynopt_ray.runs.kinds.prune.spec import KIND

__all__ = [
    "KIND",
]
