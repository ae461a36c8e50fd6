"""Resizing a live network: trace it, then grow, shrink and mask it with its optimizer."""

from dynopt_ray.structure.apply import Receipt
from dynopt_ray.structure.checkpoint import load, save
from dynopt_ray.structure.cost import Cost, measure
from dynopt_ray.structure.edits import (
    Edit,
    Grow,
    Insert,
    Mask,
    Plan,
    Remove,
    Shrink,
    plan_from_json,
    plan_to_json,
)
from dynopt_ray.structure.graph import Graph, trace
from dynopt_ray.structure.groups import Slice, WidthGroup
from dynopt_ray.structure.history import history_of
from dynopt_ray.structure.latency import LatencyModel, fit_latency
from dynopt_ray.structure.masks import mask_of

__all__ = [
    "Cost",
    "Edit",
    "Graph",
    "Grow",
    "Insert",
    "LatencyModel",
    "Mask",
    "Plan",
    "Receipt",
    "Remove",
    "Shrink",
    "Slice",
    "WidthGroup",
    "fit_latency",
    "history_of",
    "load",
    "mask_of",
    "measure",
    "plan_from_json",
    "plan_to_json",
    "save",
    "trace",
]
