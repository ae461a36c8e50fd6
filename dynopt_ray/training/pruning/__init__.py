"""Pruning: candidates for removal, selection, rounds and recovery."""

from dynopt_ray.training.pruning.arguments import check_min_widths
from dynopt_ray.training.pruning.candidates import Candidates, Pool
from dynopt_ray.training.pruning.config import make_recovery
from dynopt_ray.training.pruning.patterns import Pattern
from dynopt_ray.training.pruning.plans import CutTarget, plan_cuts
from dynopt_ray.training.pruning.pruner import PruneResult, prune
from dynopt_ray.training.pruning.recovery import Cut, Greedy, Random, Recovery
from dynopt_ray.training.pruning.regrowth import Regrowth
from dynopt_ray.training.pruning.rounds import GRANULARITIES, Granularity
from dynopt_ray.training.pruning.selection import unreachable
from dynopt_ray.training.pruning.units import least_widths, most_held, unit_pool
from dynopt_ray.training.pruning.weights import weight_pool

__all__ = [
    "GRANULARITIES",
    "Candidates",
    "Cut",
    "CutTarget",
    "Granularity",
    "Greedy",
    "Pattern",
    "Pool",
    "PruneResult",
    "Random",
    "Recovery",
    "Regrowth",
    "check_min_widths",
    "least_widths",
    "make_recovery",
    "most_held",
    "plan_cuts",
    "prune",
    "unit_pool",
    "unreachable",
    "weight_pool",
]
