"""Costs of a network: measured by running it, or computed from its widths."""

from dynopt_ray.structure.costs.cost import Cost, CostKind, count_nonzero, latency_ms, measure
from dynopt_ray.structure.costs.cost_model import CostModel

__all__ = [
    "Cost",
    "CostKind",
    "CostModel",
    "count_nonzero",
    "latency_ms",
    "measure",
]
