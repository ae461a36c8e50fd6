"""Count the non-zero parameters that a network would have after units are removed."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from dynopt_ray.structure import Graph, mask_of

Along = dict[int, list[tuple[str, Tensor]]]
"""Dimension -> (width group, positions of its units) for each group along that dimension."""


class NonzeroCount:
    """Counts exactly the non-zero parameters that remain when some units are removed.

    Args:
        graph: the traced network. It is read once, so make a new count after every change.
        lasting: True counts only masked entries as zero. False also counts unmasked entries that
            happen to be zero.
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
        """Return the number of non-zero parameters that would remain.

        Args:
            stays: group name -> bool tensor (width,), True for units that stay; for every group.
        """
        return sum(_counted(counts, along, stays) for counts, along in self._parts)


def is_nonzero(parameter: Tensor, *, lasting: bool) -> Tensor:
    """Return which entries of a parameter count as non-zero, as a bool tensor of its shape."""
    keep = mask_of(parameter) if lasting else parameter.detach() != 0
    return torch.ones_like(parameter, dtype=torch.bool) if keep is None else keep


def _summed(filled: Tensor, along: Along) -> tuple[Tensor, Along]:
    """Sum the non-zero entries over all dimensions that hold no units."""
    fixed = [dim for dim in range(filled.ndim) if dim not in along]
    counts = filled.sum(fixed) if fixed else filled
    # Matrix products of integers are slow, and float32 is not exact above 2^24.
    return counts.double().cpu(), dict(sorted(along.items()))


def _counted(counts: Tensor, along: Along, stays: Mapping[str, Tensor]) -> int:
    for groups in reversed(along.values()):
        kept = torch.ones(counts.shape[-1], dtype=counts.dtype, device="cpu")
        for name, positions in groups:
            kept[positions[~stays[name]].flatten()] = 0
        counts = counts @ kept
    return round(float(counts))
