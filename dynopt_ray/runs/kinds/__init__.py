"""The kinds of runs, one folder each: what its spec may say, and what carries it out."""

from dynopt_ray.runs.kinds.registry import KINDS, check_address, prepare

__all__ = [
    "KINDS",
    "check_address",
    "prepare",
]
