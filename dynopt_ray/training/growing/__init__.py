"""Growing: where new units pay, how they start, when they come."""

from dynopt_ray.training.growing.gain import Ranked, rank_candidates
from dynopt_ray.training.growing.grower import GrowResult, When, grow, stalled
from dynopt_ray.training.growing.planner import GrowthCriterion, GrowthInit

__all__ = [
    "GrowResult",
    "GrowthCriterion",
    "GrowthInit",
    "Ranked",
    "When",
    "grow",
    "rank_candidates",
    "stalled",
]
