"""The kinds of runs, one folder each: what its spec may say, and what carries it out."""

from dynopt_ray.runs.kinds.adapt import AdaptSpec
from dynopt_ray.runs.kinds.demo import DemoSpec
from dynopt_ray.runs.kinds.policy import PolicySpec
from dynopt_ray.runs.kinds.prune import PruneSpec
from dynopt_ray.runs.kinds.registry import KINDS, check_address, prepare
from dynopt_ray.runs.kinds.search import SearchSpec
from dynopt_ray.runs.kinds.stream import StreamSpec

__all__ = [
    "KINDS",
    "AdaptSpec",
    "DemoSpec",
    "PolicySpec",
    "PruneSpec",
    "SearchSpec",
    "StreamSpec",
    "check_address",
    "prepare",
]
