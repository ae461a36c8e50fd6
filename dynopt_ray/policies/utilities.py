"""Utility: what policies and searches maximise, and what reports show."""

from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

ChargedCost = Literal["params", "nonzero", "flops", "bytes"]
"""The costs that a utility can charge for: attributes of `structure.Cost`."""

CHARGED_COSTS: tuple[ChargedCost, ...] = get_args(ChargedCost)

Number = TypeVar("Number", float, NDArray[np.float64])


def utility(metric: Number, relative_cost: Number, cost_weight: Number) -> Number:
    """U = metric − λ · relative cost.

    What is called utility, in tables, searches and reports, is that of the task's metric
    (accuracy). Smooth utility is that of `Metrics.smooth`: it has less noise on small splits, so
    rewards and the decisions of `adapt` are made of it.

    Args:
        metric: on the validation split; larger is better.
        relative_cost: the network's cost over its cost at the start.
        cost_weight: λ, what the starting network's whole cost is worth.
    """
    return metric - cost_weight * relative_cost
