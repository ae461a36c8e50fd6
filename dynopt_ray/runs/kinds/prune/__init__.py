"""`kind: prune`: prune one network by the loop of the article."""

from dynopt_ray.runs.kinds.prune.spec import KIND

__all__ = [
    "KIND",
]
