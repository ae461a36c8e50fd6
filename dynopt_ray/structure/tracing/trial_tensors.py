"""The tensors of a network with more units, for a trial of whether the network runs with them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dynopt_ray.structure.tracing.forward import placeholder_tensors
from dynopt_ray.structure.units import Axis, Change, Key, WidthGroup, new_axes


def trial_tensors(
    tensors: Mapping[str, Tensor],
    groups: Sequence[WidthGroup],
    added: Mapping[str, int],
    device: torch.device,
) -> dict[str, Tensor]:
    """Return a network's tensors with `added[group]` more units in each group.

    On the meta device they have no values. Elsewhere the network runs there because its forward
    pass reads values, so the values should lead to the same results: new units are copies of the
    last unit, and nothing reads them.
    """
    if device.type == "meta":
        return placeholder_tensors(tensors, resized_shapes(tensors, groups, added), device)
    changes = [
        Change(
            group,
            torch.arange(group.width, device="cpu"),
            torch.full((added[group.name],), group.width - 1, device="cpu"),
        )
        for group in groups
    ]
    keys = {(s.parameter, s.dim) for group in groups for s in group.slices}
    axes = new_axes(changes, {(name, dim): tensors[name].shape[dim] for name, dim in keys})
    by_tensor: dict[str, dict[Key, Axis]] = {}
    for key, axis in axes.items():
        by_tensor.setdefault(key[0], {})[key] = axis
    return {name: _trial(t, by_tensor.get(name, {})) for name, t in tensors.items()}


def resized_shapes(
    tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup], added: Mapping[str, int]
) -> dict[str, list[int]]:
    """Return the new shapes of the tensors that change when `added[group]` units are added."""
    shapes: dict[str, list[int]] = {}
    for group in groups:
        for s in group.slices:
            shape = shapes.setdefault(s.parameter, list(tensors[s.parameter].shape))
            shape[s.dim] += added.get(group.name, 0) * s.positions.shape[1]
    return shapes


def _trial(tensor: Tensor, axes: Mapping[Key, Axis]) -> Tensor:
    if not axes:
        # A pass may write to buffers and parameters, so they must not be the network's own.
        return tensor.detach().clone()
    value = tensor.detach()
    for (_, dim), axis in axes.items():
        value = value.index_select(dim, axis.index.to(value.device))
        value.index_fill_(dim, axis.new[axis.read].to(value.device), 0)
    return value
