"""`kind: demo`: everything in one run: policy, adaptation, search, stream."""

from dynopt_ray.runs.kinds.demo.spec import KIND

__all__ = [
    "KIND",
]
