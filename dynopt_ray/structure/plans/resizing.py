"""New tensors for a new layout. Nothing here writes to a network."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dynopt_ray.structure.plans.initialisation import Draw, fresh_tensors, seeded, split_shares
from dynopt_ray.structure.units import Axis, Change, Key, moved_group

_SMALL_BYTES = 2**20
_NUM_PARTS = 8
"""How many parts of a larger tensor are cut one after another: what lies between two cuts, freed
between results that stay, leaves gaps in memory."""

Axes = Mapping[int, Axis]
"""The new layout of some dimensions of one tensor: dimension -> axis."""


def resized(tensor: Tensor, axes: Axes, new: Tensor | float | bool) -> Tensor:
    """A tensor in the new layout, a new one also where that is the old layout.

    Args:
        tensor: the old values, which must not move on when training does: undoing needs them.
        axes: the new layout of the dimensions that change.
        new: what new coordinates hold; a tensor of the new shape, or one value.
    """
    if tensor.is_sparse:
        dense = resized(tensor.to_dense(), axes, new)
        return dense.to_sparse(tensor.sparse_dim())
    if not axes:
        return tensor.detach().clone()
    result = _selected(tensor, axes)
    for dim, axis in axes.items():
        if len(axis.new):
            at = axis.new.to(tensor.device)
            if isinstance(new, Tensor):
                result.index_copy_(dim, at, new.index_select(dim, at))
            else:
                result.index_fill_(dim, at, new)
    return result


def resized_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    changes: Sequence[Change],
    axes: Mapping[Key, Axis],
    *,
    draw: Draw,
) -> dict[str, Tensor]:
    """The new values of every parameter and buffer that the changes touch.

    Units that are copies take over what their original makes and share what it gives. Fresh ones
    start as their layer would, and no unit that was there reads them yet: those weights are zero.
    New units may read each other, as nothing that was there reads any of them.

    Args:
        model: the network; only read.
        tensors: its parameters and buffers by name.
        changes: how its groups change.
        axes: the new layout.
        draw: what new weights are drawn from.
    """
    by_tensor = axes_of_tensors(axes)
    families = _families(changes, axes)
    result: dict[str, Tensor] = {}
    for module_name, names in _by_module(by_tensor).items():
        grown = [n for n in names if any(_makes_fresh(a) for a in by_tensor[n].values())]
        fresh = _fresh(model, module_name, grown, tensors, by_tensor, draw)
        for name in names:
            result[name] = _resized_weight(tensors[name], by_tensor[name], fresh.get(name))
            if name in families:
                seed = seeded(draw, "split", name)
                result[name].mul_(split_shares(result[name], families[name], seed))
    return result


def axes_of_tensors(axes: Mapping[Key, Axis]) -> dict[str, dict[int, Axis]]:
    """The axes of each tensor: name -> dimension -> axis."""
    by_tensor: dict[str, dict[int, Axis]] = defaultdict(dict)
    for (name, dim), axis in axes.items():
        by_tensor[name][dim] = axis
    return by_tensor


def _resized_weight(tensor: Tensor, axes: Axes, fresh: Tensor | None) -> Tensor:
    result = _selected(tensor, axes)
    for dim, axis in axes.items():
        if len(read := axis.new[_fresh_here(axis) & axis.read]):
            result.index_fill_(dim, read.to(tensor.device), 0)
    # Fresh rows come last: nothing reads the units they make, so these may read fresh units.
    for dim, axis in axes.items():
        if fresh is not None and len(made := axis.new[_fresh_here(axis) & ~axis.read]):
            at = made.to(tensor.device)
            result.index_copy_(dim, at, fresh.index_select(dim, at))
    return result


def _selected(tensor: Tensor, axes: Axes) -> Tensor:
    """The old values in their new places; new coordinates hold any."""
    tensor = tensor.detach()
    indices = {d: axis.index.clamp(min=0).to(tensor.device) for d, axis in axes.items()}
    first = next(iter(indices), 0)
    if len(indices) < 2 or tensor.nbytes < _SMALL_BYTES:
        return _index_selected(tensor, indices)
    result = tensor.new_empty(
        [len(indices[d]) if d in indices else size for d, size in enumerate(tensor.shape)]
    )
    parts = indices[first].chunk(_NUM_PARTS), result.chunk(_NUM_PARTS, first)
    for part, into in zip(*parts, strict=True):
        into.copy_(_index_selected(tensor, {**indices, first: part}))
    return result


def _index_selected(tensor: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    for dim, index in indices.items():
        tensor = tensor.index_select(dim, index)
    return tensor


def _fresh_here(axis: Axis) -> Tensor:
    return axis.index[axis.new] < 0


def _makes_fresh(axis: Axis) -> bool:
    return bool((_fresh_here(axis) & ~axis.read).any())


def _fresh(
    model: nn.Module,
    module_name: str,
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    by_tensor: Mapping[str, Axes],
    draw: Draw,
) -> dict[str, Tensor]:
    """Fresh values for some of one module's tensors, by full name."""
    if not names:
        return {}
    own = {name.rpartition(".")[2]: name for name in names}
    shapes = {}
    for short, name in own.items():
        shapes[short] = list(tensors[name].shape)
        for dim, axis in by_tensor[name].items():
            shapes[short][dim] = len(axis.index)
    filled = fresh_tensors(
        model.get_submodule(module_name),
        shapes,
        {short: tensors[name] for short, name in own.items()},
        seeded(draw, "fresh", module_name),
    )
    return {own[short]: tensor for short, tensor in filled.items()}


def _families(changes: Sequence[Change], axes: Mapping[Key, Axis]) -> dict[str, dict[int, Tensor]]:
    """By tensor and dimension that reads copied units: the first coordinate of the same copies."""
    families: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for change in changes:
        if not len(change.source) or bool((change.source < 0).any()):
            continue
        kept = torch.arange(len(change.keep), device="cpu")
        original = torch.cat([kept, torch.searchsorted(change.keep, change.source)])
        for s in moved_group(change.group, change, axes).slices:
            if s.role == "in":
                everyone = torch.arange(len(axes[s.parameter, s.dim].index), device="cpu")
                family = families[s.parameter].setdefault(s.dim, everyone)
                family[s.positions] = s.positions[original]
    return families


def _by_module(names: Mapping[str, object]) -> dict[str, list[str]]:
    modules: dict[str, list[str]] = defaultdict(list)
    for name in names:
        modules[name.rpartition(".")[0]].append(name)
    return modules
