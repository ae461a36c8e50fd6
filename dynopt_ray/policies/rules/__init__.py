"""Rules: hand-written policies, which a learned policy has to beat."""

from dynopt_ray.policies.rules.data_sized_widths import DataSizedWidths
from dynopt_ray.policies.rules.rule import Rule
from dynopt_ray.policies.rules.stalled_growth import StalledGrowth
from dynopt_ray.policies.rules.useless_shrinking import UselessShrinking

__all__ = [
    "DataSizedWidths",
    "Rule",
    "StalledGrowth",
    "UselessShrinking",
]
