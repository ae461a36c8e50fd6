"""Costs of networks whose non-zero weights have been counted on their device, but not read yet."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dynopt_ray.structure.costs.cost import Cost
from dynopt_ray.structure.costs.cost_model import CostModel
from dynopt_ray.transfers import read_together


@dataclass(frozen=True, eq=False)
class UnreadCost:
    """A cost, before the host has read how many weights are non-zero.

    Attributes:
        model: computes the cost.
        widths: the widths of the network's groups.
        counts: the number of non-zero entries of each parameter.
    """

    model: CostModel
    widths: Sequence[int]
    counts: Sequence[Tensor]

    def read(self, counts: Sequence[Tensor]) -> Cost:
        """Return the cost, once the counts have been read."""
        return self.model.cost(self.widths, sum(int(count) for count in counts))


def read_costs(*unread: UnreadCost) -> list[Cost]:
    """Return several costs, after one wait of the host for the device."""
    counts = iter(read_together([count for one in unread for count in one.counts]))
    return [one.read([next(counts) for _ in one.counts]) for one in unread]
