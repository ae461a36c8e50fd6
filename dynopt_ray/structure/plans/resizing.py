"""Computes new tensors for a new layout. Nothing here writes to a network."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from dynopt_ray.structure.plans.initialisation import Draw, fresh_tensors, seeded, split_shares
from dynopt_ray.structure.units import Axis, Change, Key, moved_group
from dynopt_ray.transfers import to_device

_SMALL_BYTES = 2**20
_NUM_PARTS = 8
"""Number of parts in which larger tensors are selected. Selecting along a second dimension needs an
intermediate tensor. Freed between results that stay, it leaves a gap in memory, so it should be
small."""

Axes = Mapping[int, Axis]
"""The new layout of some dimensions of one tensor: dimension -> axis."""


def resized(tensor: Tensor, axes: Axes, new: Tensor | float | bool) -> Tensor:
    """Return a tensor in the new layout. It is a new tensor even if the layout is the old one.

    Args:
        tensor: the old values. The result shares no memory with them, because training will modify
            the result and `undo` needs the old values.
        axes: the new layout of the dimensions that change.
        new: the values of new coordinates: a tensor of the new shape, or one number.
    """
    if tensor.is_sparse:
        dense = resized(tensor.to_dense(), axes, new)
        return dense.to_sparse(tensor.sparse_dim())
    if not axes:
        return tensor.detach().clone()
    result = _selected(tensor, axes)
    for dim, axis in axes.items():
        if len(axis.new):
            at = axis.on(tensor.device, "new")
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
    nonlinear: Collection[Key] = (),
) -> dict[str, Tensor]:
    """Return the new values of every parameter and buffer that the changes touch.

    Copied units have the incoming weights of their original and share its outgoing weights. If what
    reads them is not linear in its weights, the original keeps all of these. Fresh
    units have incoming weights as their layer would initialise them, and zero outgoing weights into
    existing units. New units may read each other without changing the output, because no existing
    unit reads any of them.

    Args:
        model: the network; only read.
        tensors: its parameters and buffers by name.
        changes: how its groups change.
        axes: the new layout.
        draw: what determines the random weights of new units.
        nonlinear: the (tensor, dimension) pairs that read units in a nonlinear way.
    """
    by_tensor = axes_of_tensors(axes)
    families, unread = _families(changes, axes, nonlinear)
    result: dict[str, Tensor] = {}
    for module_name, names in _by_module(by_tensor).items():
        grown = [n for n in names if any(_makes_fresh(a) for a in by_tensor[n].values())]
        fresh = _fresh(model, module_name, grown, tensors, by_tensor, draw)
        for name in names:
            result[name] = _resized_weight(tensors[name], by_tensor[name], fresh.get(name))
            if name in families:
                seed = seeded(draw, "split", name)
                result[name].mul_(split_shares(result[name], families[name], seed))
            for dim, positions in unread.get(name, {}).items():
                result[name].index_fill_(dim, to_device(positions, result[name].device), 0)
    return result


def axes_of_tensors(axes: Mapping[Key, Axis]) -> dict[str, dict[int, Axis]]:
    """Return the axes of each tensor: name -> dimension -> axis."""
    by_tensor: dict[str, dict[int, Axis]] = defaultdict(dict)
    for (name, dim), axis in axes.items():
        by_tensor[name][dim] = axis
    return by_tensor


def _resized_weight(tensor: Tensor, axes: Axes, fresh: Tensor | None) -> Tensor:
    result = _selected(tensor, axes)
    for dim, axis in axes.items():
        if len(read := axis.on(tensor.device, "read")):
            result.index_fill_(dim, read, 0)
    # Fill rows of fresh units last: no existing unit reads them, so they may read fresh units.
    for dim, axis in axes.items():
        if fresh is not None and len(made := axis.on(tensor.device, "made")):
            result.index_copy_(dim, made, fresh.index_select(dim, made))
    return result


def _selected(tensor: Tensor, axes: Axes) -> Tensor:
    """Return the old values in their new places; new coordinates hold arbitrary values."""
    tensor = tensor.detach()
    indices = {d: axis.on(tensor.device, "from") for d, axis in axes.items()}
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


def _makes_fresh(axis: Axis) -> bool:
    return len(axis.on(torch.device("cpu"), "made")) > 0


def _fresh(
    model: nn.Module,
    module_name: str,
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    by_tensor: Mapping[str, Axes],
    draw: Draw,
) -> dict[str, Tensor]:
    """Return fresh values for some of one module's tensors, by full name."""
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


def _families(
    changes: Sequence[Change], axes: Mapping[Key, Axis], nonlinear: Collection[Key]
) -> tuple[dict[str, dict[int, Tensor]], dict[str, dict[int, Tensor]]]:
    """Return which coordinates read copies of one unit, and which must not read their copy.

    Returns:
        Tensor -> dimension -> family numbers; a family's number is the coordinate that reads the
        original unit. And tensor -> dimension -> the coordinates that would read copies in a
        nonlinear way.
    """
    families: dict[str, dict[int, Tensor]] = defaultdict(dict)
    unread: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for change in changes:
        if not len(change.source) or bool((change.source < 0).any()):
            continue
        kept = torch.arange(len(change.keep), device="cpu")
        original = torch.cat([kept, torch.searchsorted(change.keep, change.source)])
        for s in moved_group(change.group, change, axes).slices:
            if s.role == "in" and (s.parameter, s.dim) in nonlinear:
                copies = s.positions[len(change.keep) :].flatten()
                before = unread[s.parameter].get(s.dim, copies[:0])
                unread[s.parameter][s.dim] = torch.cat([before, copies])
            elif s.role == "in":
                everyone = torch.arange(len(axes[s.parameter, s.dim].index), device="cpu")
                family = families[s.parameter].setdefault(s.dim, everyone)
                family[s.positions] = s.positions[original]
    return families, unread


def _by_module(names: Mapping[str, object]) -> dict[str, list[str]]:
    modules: dict[str, list[str]] = defaultdict(list)
    for name in names:
        modules[name.rpartition(".")[0]].append(name)
    return modules
