"""Norms over all weights of a unit."""

from collections.abc import Mapping

from torch import Tensor

from dynopt_ray.criteria.aggregate import Aggregate, aggregated, check_aggregate, sums_per_slice
from dynopt_ray.structure import Graph, Role

_ORDERS = (1, 2)
_ALL: tuple[Role, ...] = ("out", "scale", "in")


def check_norm(criterion: str, order: int, aggregate: str) -> None:
    """Refuse an unknown order or aggregate.

    Raises:
        ValueError: `order` is not 1 or 2.
        UnknownNameError: `aggregate` is unknown.
    """
    if order not in _ORDERS:
        raise ValueError(f"{criterion}: order is {order!r}; it must be 1 or 2")
    check_aggregate(aggregate)


def unit_norms(
    graph: Graph, values: Mapping[str, Tensor], order: int, aggregate: Aggregate
) -> dict[str, Tensor]:
    """The norm of each unit's entries in all parameters that produce, scale or read it.

    Args:
        graph: the network's groups.
        values: parameter name -> tensor of its shape.
        order: 1 or 2.
        aggregate: how sums over slices are combined; the root is taken last.

    Returns:
        Group name -> Tensor (width,).
    """
    powers = {n: value.abs() if order == 1 else value.square() for n, value in values.items()}
    sums = {g.name: aggregated(sums_per_slice(g, powers, roles=_ALL), aggregate) for g in graph}
    return {name: s if order == 1 else s.sqrt() for name, s in sums.items()}
