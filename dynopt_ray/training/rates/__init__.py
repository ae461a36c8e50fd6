"""Learning rates that follow what training shows."""

from dynopt_ray.training.rates.cocob import Cocob
from dynopt_ray.training.rates.find_rate import RateRange, find_rate
from dynopt_ray.training.rates.hypergradient import Hypergradient
from dynopt_ray.training.rates.plateau import Plateau

__all__ = ["Cocob", "Hypergradient", "Plateau", "RateRange", "find_rate"]
