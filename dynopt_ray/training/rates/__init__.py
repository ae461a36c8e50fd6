"""Learning rates that adapt to the progress of training."""

from dynopt_ray.training.rates.cocob import Cocob
from dynopt_ray.training.rates.config import Rate, make_rate, make_schedule
from dynopt_ray.training.rates.controller import ControllerFactory, RateController
from dynopt_ray.training.rates.hypergradients import Hypergradient, hypergradient
from dynopt_ray.training.rates.plateau import Plateau
from dynopt_ray.training.rates.population_based import PopulationBasedRate, PopulationStart
from dynopt_ray.training.rates.range_test import RateRange, find_rate

__all__ = [
    "Cocob",
    "ControllerFactory",
    "Hypergradient",
    "Plateau",
    "PopulationBasedRate",
    "PopulationStart",
    "Rate",
    "RateController",
    "RateRange",
    "find_rate",
    "hypergradient",
    "make_rate",
    "make_schedule",
]
