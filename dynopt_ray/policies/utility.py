"""Utility: what policies, searches and reports maximise."""

from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

CostKind = Literal["params", "nonzero", "flops", "bytes"]
"""The costs that a utility can charge for: attributes of `structure.Cost`."""

COST_KINDS: tuple[CostKind, ...] = get_args(CostKind)

Number = TypeVar("Number", float, NDArray[np.float64])


def utility(metric: Number, relative_cost: Number, cost_weight: Number) -> Number:
    """U = metric − λ · relative cost.

    Args:
        metric: larger is better; for decisions `Metrics.smooth` on the validation split.
        relative_cost: the network's cost over its cost at the start.
        cost_weight: λ, what the starting network's whole cost is worth.
    """
    return metric - cost_weight * relative_cost
