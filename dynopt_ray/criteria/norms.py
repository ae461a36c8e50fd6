"""Norms over all that a unit consists of."""

from collections.abc import Mapping

from torch import Tensor

from dynopt_ray.criteria.aggregate import Aggregate, aggregated, check_aggregate, sums_per_slice
from dynopt_ray.structure import Graph, Role

_ORDERS = (1, 2)
_ALL: tuple[Role, ...] = ("out", "scale", "in")


def check_norm(criterion: str, order: int, aggregate: str) -> None:
    """Refuse what is no norm.

    Raises:
        ValueError: an order other than 1 and 2.
        UnknownNameError: no such aggregate.
    """
    if order not in _ORDERS:
        raise ValueError(f"{criterion}: order is {order!r}; it must be 1 or 2")
    check_aggregate(aggregate)


def unit_norms(
    graph: Graph, values: Mapping[str, Tensor], order: int, aggregate: Aggregate
) -> dict[str, Tensor]:
    """The norm of each unit's entries: of what makes it, scales it and reads it.

    Args:
        graph: the network's groups.
        values: parameter name -> tensor of its shape.
        order: 1 or 2.
        aggregate: see `sums_per_slice`; roots are taken last.

    Returns:
        Group name -> Tensor (width,).
    """
    powers = {n: value.abs() if order == 1 else value.square() for n, value in values.items()}
    sums = {g.name: aggregated(sums_per_slice(g, powers, roles=_ALL), aggregate) for g in graph}
    return {name: s if order == 1 else s.sqrt() for name, s in sums.items()}
