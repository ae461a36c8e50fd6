"""How many parameters of a smaller network are not zero, without making it."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from dynopt_ray.structure import Graph, mask_of

Along = dict[int, list[tuple[str, Tensor]]]
"""Dimension -> the groups whose units lie along it, each with their positions there."""


class NonzeroCount:
    """Counts the parameters that stay and are not zero, exactly.

    Args:
        graph: the traced network. It is read once: make a new count when it has changed.
        lasting: whether only what a mask holds counts as zero, and not what is zero by chance.
    """

    def __init__(self, graph: Graph, *, lasting: bool) -> None:
        along: dict[str, Along] = defaultdict(lambda: defaultdict(list))
        for group in graph:
            for s in group.slices:
                along[s.parameter][s.dim].append((group.name, s.positions))
        self._parts = [
            _summed(is_nonzero(parameter, lasting=lasting), along[name])
            for name, parameter in graph.model.named_parameters()
        ]

    def __call__(self, stays: Mapping[str, Tensor]) -> int:
        """How many there would be.

        Args:
            stays: group name -> bool tensor (width,), for every group.
        """
        return sum(_counted(counts, along, stays) for counts, along in self._parts)


def is_nonzero(parameter: Tensor, *, lasting: bool) -> Tensor:
    """Bool tensor of a parameter's shape: which entries count as not zero."""
    keep = mask_of(parameter) if lasting else parameter.detach() != 0
    return torch.ones_like(parameter, dtype=torch.bool) if keep is None else keep


def _summed(filled: Tensor, along: Along) -> tuple[Tensor, Along]:
    """Entries that are not zero, added up over the dimensions that no unit lies along."""
    fixed = [dim for dim in range(filled.ndim) if dim not in along]
    counts = filled.sum(fixed) if fixed else filled
    # Whole numbers have no fast product, and float32 would not be exact above 2^24.
    return counts.double().cpu(), dict(sorted(along.items()))


def _counted(counts: Tensor, along: Along, stays: Mapping[str, Tensor]) -> int:
    for groups in reversed(along.values()):
        kept = torch.ones(counts.shape[-1], dtype=counts.dtype)
        for name, positions in groups:
            kept[positions[~stays[name]].flatten()] = 0
        counts = counts @ kept
    return round(float(counts))
