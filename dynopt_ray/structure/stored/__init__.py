"""What a file of a network holds besides weights: names, ends, optimizers."""

from dynopt_ray.structure.stored.fits import End, check_ends, check_fits
from dynopt_ray.structure.stored.names import (
    modules_by_name,
    parameters_by_name,
    tensors_by_name,
    unwrapped,
)
from dynopt_ray.structure.stored.optimizers import load_optimizers, optimizer_state

__all__ = [
    "End",
    "check_ends",
    "check_fits",
    "load_optimizers",
    "modules_by_name",
    "optimizer_state",
    "parameters_by_name",
    "tensors_by_name",
    "unwrapped",
]
