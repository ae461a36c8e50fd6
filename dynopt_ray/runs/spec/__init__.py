"""Specs: checked plain data that describe runs. All mistakes are reported at once."""

from dynopt_ray.runs.spec.base import CostFractions, NetworkSpec, Spec, UtilitySpec
from dynopt_ray.runs.spec.derived import Fills, default_of
from dynopt_ray.runs.spec.fields import (
    ActionsField,
    ByName,
    CriterionField,
    DetectorField,
    OptimizerField,
    Phase,
    PolicyField,
    RateField,
    ReactionField,
    RecoveryField,
    SchedulerField,
    SearcherField,
    TrackerField,
)
from dynopt_ray.runs.spec.overrides import with_overrides
from dynopt_ray.runs.spec.validation import Strict, checked_by, validated
from dynopt_ray.runs.spec.yaml_text import dump, parse

__all__ = [
    "ActionsField",
    "ByName",
    "CostFractions",
    "CriterionField",
    "DetectorField",
    "Fills",
    "NetworkSpec",
    "OptimizerField",
    "Phase",
    "PolicyField",
    "RateField",
    "ReactionField",
    "RecoveryField",
    "SchedulerField",
    "SearcherField",
    "Spec",
    "Strict",
    "TrackerField",
    "UtilitySpec",
    "checked_by",
    "default_of",
    "dump",
    "parse",
    "validated",
    "with_overrides",
]
