"""`kind: demo`: one run with all parts: policy, adaptation, search and stream."""

from dynopt_ray.runs.kinds.demo.spec import KIND

__all__ = [
    "KIND",
]
