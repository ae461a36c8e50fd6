"""What is known about single functions of torch: those that call others, and shapes of results."""

from dynopt_ray.structure.tracing.torch_functions.meta_results import shape_only
from dynopt_ray.structure.tracing.torch_functions.transparent import TRANSPARENT

__all__ = ["TRANSPARENT", "shape_only"]
