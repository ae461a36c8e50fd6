"""Specs: one model per kind of run. What YAML may say, with defaults and descriptions."""

from dynopt_ray.runs.specs.base import Fractions, NetworkSpec, Spec
from dynopt_ray.runs.specs.demo import DemoSpec
from dynopt_ray.runs.specs.policy import AdaptSettings, AdaptSpec, PolicySettings, PolicySpec
from dynopt_ray.runs.specs.prune import PruneSpec, TargetSpec
from dynopt_ray.runs.specs.search import SearchSettings, SearchSpec
from dynopt_ray.runs.specs.stream import LearnerSettings, StreamSettings, StreamSpec

__all__ = [
    "AdaptSettings",
    "AdaptSpec",
    "DemoSpec",
    "Fractions",
    "LearnerSettings",
    "NetworkSpec",
    "PolicySettings",
    "PolicySpec",
    "PruneSpec",
    "SearchSettings",
    "SearchSpec",
    "Spec",
    "StreamSettings",
    "StreamSpec",
    "TargetSpec",
]
