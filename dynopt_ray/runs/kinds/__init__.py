"""The kinds of runs, one folder each: the spec of the kind, and the runner that carries it out."""

from dynopt_ray.runs.kinds.registry import KINDS, check_address, check_can_start, prepare

__all__ = [
    "KINDS",
    "check_address",
    "check_can_start",
    "prepare",
]
