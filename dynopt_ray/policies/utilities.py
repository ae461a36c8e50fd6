"""Utility: the metric of a network minus the price of its cost."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", float, NDArray[np.float64])


def utility(metric: Number, relative_cost: Number, cost_weight: Number) -> Number:
    """Return U = metric − λ · relative cost.

    Tables, searches and reports call U "utility" if the metric is the task's own, such as
    accuracy, and "smooth utility" if it is `Metrics.smooth`. Smooth utility has less noise on
    small splits. Rewards and the decisions of `adapt` are therefore based on it.

    Args:
        metric: a metric on the validation split; larger is better.
        relative_cost: the network's cost over its cost at the start.
        cost_weight: λ, the price of the whole starting cost in units of the metric.
    """
    return metric - cost_weight * relative_cost
