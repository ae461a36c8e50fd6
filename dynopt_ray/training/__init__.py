"""Training: the one loop everything shares, pruning and growing, and what layers can spare."""

from dynopt_ray.training.allocate import allocate
from dynopt_ray.training.attempt import Attempt, attempt
from dynopt_ray.training.candidates import Candidates
from dynopt_ray.training.distillation import Distillation
from dynopt_ray.training.gain import Ranked, rank_candidates
from dynopt_ray.training.grow import GrowResult, When, grow, stalled
from dynopt_ray.training.measurement import Costs, Measurement, measured
from dynopt_ray.training.plots import plot_sensitivity
from dynopt_ray.training.prune import PruneResult, prune
from dynopt_ray.training.rates import (
    Cocob,
    ControllerFactory,
    Hypergradient,
    Plateau,
    Population,
    RateController,
    RateRange,
    find_rate,
    hypergradient,
)
from dynopt_ray.training.recovery import Cut, Greedy, Random, Recovery
from dynopt_ray.training.regrowth import Regrowth
from dynopt_ray.training.retraining import Retraining
from dynopt_ray.training.rounds import Granularity
from dynopt_ray.training.sensitivity import sensitivity
from dynopt_ray.training.snapshot import Snapshot
from dynopt_ray.training.targets import Budget, CostKind, Fraction, Target, Threshold

__all__ = [
    "Attempt",
    "Budget",
    "Candidates",
    "Cocob",
    "ControllerFactory",
    "CostKind",
    "Costs",
    "Cut",
    "Distillation",
    "Fraction",
    "Granularity",
    "Greedy",
    "GrowResult",
    "Hypergradient",
    "Measurement",
    "Plateau",
    "Population",
    "PruneResult",
    "Random",
    "Ranked",
    "RateController",
    "RateRange",
    "Recovery",
    "Regrowth",
    "Retraining",
    "Snapshot",
    "Target",
    "Threshold",
    "When",
    "allocate",
    "attempt",
    "find_rate",
    "grow",
    "hypergradient",
    "measured",
    "plot_sensitivity",
    "prune",
    "rank_candidates",
    "sensitivity",
    "stalled",
]
