"""Conformance kits: checks that every built-in member passes, for authors to run on plugins."""

from dynopt_ray.testing.actions import check_action
from dynopt_ray.testing.criteria import check_criterion
from dynopt_ray.testing.detectors import check_detector
from dynopt_ray.testing.reactions import check_reaction
from dynopt_ray.testing.rules import check_rule
from dynopt_ray.testing.schedules import check_schedule
from dynopt_ray.testing.tasks import check_task

__all__ = [
    "check_action",
    "check_criterion",
    "check_detector",
    "check_reaction",
    "check_rule",
    "check_schedule",
    "check_task",
]
