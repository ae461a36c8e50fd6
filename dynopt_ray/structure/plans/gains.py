"""The gains of weight-normalised layers, which follow the norms of their directions.

Such a layer computes its weight as `gain * direction / |direction|`. If an edit changes the norm (a
column is removed, or a new row enters the norm of the whole matrix), all other weights of the layer
would change too. The gains are therefore multiplied by the ratio of the norms, and the weights stay
as they are.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dynopt_ray.structure.units import Axis, Key, WeightNorm

_ROUNDING = 1e-6


def rescale_gains(
    tensors: Mapping[str, Tensor],
    new: dict[str, Tensor],
    norms: Sequence[WeightNorm],
    axes: Mapping[Key, Axis],
) -> None:
    """Rescale the gains of the layers whose directions change.

    Args:
        tensors: the parameters and buffers before the edit.
        new: the new values of those that change; gains are added or replaced.
        norms: the weight-normalised layers.
        axes: the new layout.
    """
    for norm in norms:
        if norm.direction not in new:
            continue
        gain = new.get(norm.gain, tensors[norm.gain].detach())
        before = _norms(tensors[norm.direction].detach(), norm.dim)
        after = _norms(new[norm.direction], norm.dim)
        axis = None if norm.dim is None else axes.get((norm.direction, norm.dim))
        if axis is not None:
            index = axis.index.to(before.device)
            before = before.index_select(0, index.clamp(min=0))
            before = torch.where(index < 0, after, before)  # new units have a gain of their own
        ratio = after / before
        ratio = torch.where((before == 0) | ((ratio - 1).abs() < _ROUNDING), 1, ratio)
        shape = [len(ratio) if d == norm.dim else 1 for d in range(gain.ndim)]
        new[norm.gain] = gain * ratio.reshape(shape).to(gain)


def _norms(direction: Tensor, dim: int | None) -> Tensor:
    """Return the norm of each coordinate of a dimension, or that of the whole tensor."""
    rows = direction.reshape(1, -1) if dim is None else direction.movedim(dim, 0).flatten(1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms
