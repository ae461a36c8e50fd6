"""Specs: plain data, checked, with every mistake reported at once."""

from dynopt_ray.runs.spec.base import CostKind, Fractions, NetworkSpec, Spec
from dynopt_ray.runs.spec.fields import (
    Config,
    Criterion,
    Detector,
    OptimizerConfig,
    Phase,
    PolicyConfig,
    Rate,
    Reaction,
    RecoveryConfig,
    Scheduler,
    Searcher,
    checked_by,
)
from dynopt_ray.runs.spec.overrides import with_overrides
from dynopt_ray.runs.spec.validation import Strict, short, validated
from dynopt_ray.runs.spec.yaml_text import dump, parse

__all__ = [
    "Config",
    "CostKind",
    "Criterion",
    "Detector",
    "Fractions",
    "NetworkSpec",
    "OptimizerConfig",
    "Phase",
    "PolicyConfig",
    "Rate",
    "Reaction",
    "RecoveryConfig",
    "Scheduler",
    "Searcher",
    "Spec",
    "Strict",
    "checked_by",
    "dump",
    "parse",
    "short",
    "validated",
    "with_overrides",
]
