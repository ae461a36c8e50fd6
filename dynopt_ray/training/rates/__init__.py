"""Learning rates that follow what training shows."""

from dynopt_ray.training.rates.cocob import Cocob
from dynopt_ray.training.rates.controller import ControllerFactory, RateController
from dynopt_ray.training.rates.find_rate import RateRange, find_rate
from dynopt_ray.training.rates.hypergradient import Hypergradient, hypergradient
from dynopt_ray.training.rates.plateau import Plateau
from dynopt_ray.training.rates.population import Population

__all__ = [
    "Cocob",
    "ControllerFactory",
    "Hypergradient",
    "Plateau",
    "Population",
    "RateController",
    "RateRange",
    "find_rate",
    "hypergradient",
]
