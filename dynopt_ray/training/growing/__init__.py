"""Growing: decide where to add units, how they start, and when they are added."""

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
