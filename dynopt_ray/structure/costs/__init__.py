"""Costs of a network: measured by running it, or computed from its widths."""

from dynopt_ray.structure.costs.cost import (
    Cost,
    CostKind,
    count_nonzero,
    latency_ms,
    measure,
    nonzero_counts,
)
from dynopt_ray.structure.costs.cost_model import CostModel
from dynopt_ray.structure.costs.unread_cost import UnreadCost, read_costs

__all__ = [
    "Cost",
    "CostKind",
    "CostModel",
    "UnreadCost",
    "count_nonzero",
    "latency_ms",
    "measure",
    "nonzero_counts",
    "read_costs",
]
