"""New weights of layers that torch's own pruning masks (`torch.nn.utils.prune`).

Such a layer computes its weight as `weight_orig * weight_mask`. The mask was chosen for the old
units. New ones have to learn, so all their weights are unmasked. A copied unit that was masked gets
zeros in `weight_orig`, so that it still computes the same.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dynopt_ray.structure.units import Axis, Key

_PRUNED, _MASK = "_orig", "_mask"


def free_new_weights(
    tensors: Mapping[str, Tensor], new: dict[str, Tensor], axes: Mapping[Key, Axis]
) -> None:
    """Unmask the weights of new units, in place.

    Args:
        tensors: the parameters and buffers before the edit.
        new: the new values of those that change.
        axes: the new layout.
    """
    for name in [name for name in new if name.endswith(_MASK)]:
        weight = name.removesuffix(_MASK) + _PRUNED
        if weight not in tensors or weight not in new:
            continue
        added, fresh = _new_entries(new[name], name, axes)
        masked = new[name] == 0
        new[weight].masked_fill_(added & ~fresh & masked, 0)
        new[name].masked_fill_(added, 1)


def _new_entries(tensor: Tensor, name: str, axes: Mapping[Key, Axis]) -> tuple[Tensor, Tensor]:
    """Return which entries belong to new units, and which of these to fresh ones."""
    added = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
    fresh = added.clone()
    for dim in range(tensor.ndim):
        axis = axes.get((name, dim))
        if axis is not None:
            added.index_fill_(dim, axis.new.to(tensor.device), value=True)
            drawn = axis.new[axis.index[axis.new] < 0]
            fresh.index_fill_(dim, drawn.to(tensor.device), value=True)
    return added, fresh
