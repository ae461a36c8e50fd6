"""Rules for operations that select, reorder or pad the coordinates of a tensor."""

from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np
from torch import Tensor

from dynopt_ray.structure.tracing.counts import Kept, Size
from dynopt_ray.structure.tracing.registry import rule, selects
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, Labels, along, covering, renumbered

selects(
    *("__getitem__", "__setitem__", "select", "narrow", "chunk", "tensor_split", "split"),
    *("split_with_sizes", "unbind", "index_select", "gather", "take_along_dim"),
)


@rule("__getitem__")
def getitem(trace: Trace, out: Tensor, input: Tensor, index: Any) -> None:
    """`x[...]` with integers, slices, None, ... and index tensors."""
    trace.use(input)
    trace.set(out, indexed(trace, input, index, out))


@rule("__setitem__")
def setitem(trace: Trace, out: Any, input: Tensor, index: Any, value: Any) -> None:
    """The units of the written value must match those that it replaces."""
    del out
    if not isinstance(value, Tensor):
        indexed(trace, input, index, input)
        trace.pin_what_is_read(input)
    else:
        target = indexed(trace, input, index, value)
        trace.pin_what_is_read(value)
        covered = {dim for label in target for dim in label.dims}
        for label in trace.labels(value):
            if not covered.intersection(label.dims):
                trace.pin(label.ids, "it is written into a tensor that has no units")
        for label in target:
            twin = next((o for o in trace.labels(value) if o.dims == label.dims), None)
            if twin is not None and twin.ids.shape == label.ids.shape:
                trace.tie(label.ids, twin.ids)
            else:
                trace.pin(label.ids, "it is overwritten with data that has no units")


@rule("select")
def select(trace: Trace, out: Tensor, input: Tensor, dim: int, index: int) -> None:
    """One coordinate of a dimension is selected."""
    trace.use(input)
    trace.set(
        out,
        renumbered(
            _picked(trace, out, trace.labels(input), dim % input.ndim, index),
            _gap(input.ndim, dim % input.ndim),
        ),
    )


@rule("narrow")
def narrow(trace: Trace, out: Tensor, input: Tensor, dim: int, start: int, length: int) -> None:
    """A run of coordinates is selected."""
    trace.use(input)
    labels = _sliced(trace, trace.labels(input), dim % input.ndim, slice(start, start + length))
    _counted_along(trace, labels, dim % input.ndim, length)
    trace.set(out, labels)


@rule("chunk", "tensor_split", "unsafe_chunk")
def chunk(trace: Trace, out: Sequence[Tensor], input: Tensor, parts: Any, dim: int = 0) -> None:
    """A dimension is cut into a number of parts, or at given indices."""
    if isinstance(parts, int) and len(out) == parts:
        split(trace, out, input, out[0].shape[dim], dim)
    else:
        _parts(trace, out, input, dim)


@rule("hsplit", "vsplit", "dsplit")
def split_along(trace: Trace, out: Sequence[Tensor], input: Tensor, parts: Any) -> None:
    """The second, first or third dimension is cut; it is the one that the parts do not share."""
    cut = [d for d in range(input.ndim) if out[0].shape[d] != input.shape[d]]
    if cut:
        chunk(trace, out, input, parts, cut[0])
    else:
        _parts(trace, out, input, 0)


@rule("glu")
def gated(trace: Trace, out: Tensor, input: Tensor, dim: int = -1) -> None:
    """One half of a dimension, gated by the other half."""
    dim %= input.ndim
    halves = [_sliced(trace, trace.labels(input), dim, part) for part in _halves(input, dim)]
    trace.use(input)
    for one, other in zip(*halves, strict=True):
        trace.tie(one.ids, other.ids)
    trace.set(out, halves[0])


def _halves(input: Tensor, dim: int) -> tuple[slice, slice]:
    middle = input.shape[dim] // 2
    return slice(middle), slice(middle, None)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
def split(trace: Trace, out: Sequence[Tensor], input: Tensor, sizes: Any, dim: int = 0) -> None:
    """Consecutive parts. Equal parts must stay equal at other widths, so their units are tied."""
    trace.use(input)
    dim %= input.ndim
    label = covering(trace.labels(input), dim)
    widths = [part.shape[dim] for part in out]
    if label is not None and len(set(widths)) == 1 and len(widths) > 1 and len(label.dims) == 1:
        trace.record.factors.append(label.ids.reshape(len(widths), -1))
    arguments = sizes if isinstance(sizes, tuple | list) else [sizes] * len(out)
    found = _parts(trace, out, input, dim)
    for size, labels in zip(arguments, found, strict=False):
        # If the size is a quotient of a count, that count belongs to all parts together.
        whole = isinstance(size, Size) and size.divisor == len(out)
        _counted_along(trace, trace.labels(input) if whole else labels, dim, size)
        if isinstance(size, Kept) and size.less:
            _counted_along(trace, trace.labels(input), dim, size.whole)


def _parts(trace: Trace, out: Sequence[Tensor], input: Tensor, dim: int) -> list[Labels]:
    """Label consecutive parts of a dimension, and return their labels."""
    trace.use(input)
    dim %= input.ndim
    found = []
    start = 0
    for part in out:
        stop = start + part.shape[dim]
        found.append(_sliced(trace, trace.labels(input), dim, slice(start, stop)))
        trace.set(part, found[-1])
        start = stop
    return found


@rule("unbind")
def unbind(trace: Trace, out: Sequence[Tensor], input: Tensor, dim: int = 0) -> None:
    """Each coordinate of a dimension becomes a tensor of its own."""
    trace.use(input)
    dim %= input.ndim
    for index, part in enumerate(out):
        labels = _picked(trace, part, trace.labels(input), dim, index)
        trace.set(part, renumbered(labels, _gap(input.ndim, dim)))


@rule("unfold")
def unfold(trace: Trace, out: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> None:
    """Windows along one dimension, or windows of each channel over space (`F.unfold`)."""
    trace.use(input)
    windows = out.ndim == input.ndim + 1
    dims = {kwargs.get("dimension", [*args, 0][0]) % input.ndim} if windows else {2, 3}
    kept: list[Label] = []
    for label in trace.labels(input):
        if dims.intersection(label.dims):
            trace.pin(label.ids, "it is cut into windows")
        elif not windows and label.dims == (1,):
            kept.append(Label((1,), label.ids.repeat(out.shape[1] // input.shape[1])))
        else:
            kept.append(label)
    trace.set(out, tuple(kept))


@rule("fold")
def fold(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """The windows of each channel over space are summed."""
    trace.use(input)
    kept: list[Label] = []
    for label in trace.labels(input):
        if label.dims == (1,):
            rows = label.ids.reshape(out.shape[1], -1)
            trace.tie(rows, rows[:, :1])
            kept.append(Label((1,), rows[:, 0]))
        elif label.dims == (0,):
            kept.append(label)
        else:
            trace.pin(label.ids, "it is cut into windows")
    trace.set(out, tuple(kept))


def indexed(trace: Trace, input: Tensor, index: Any, out: Tensor) -> Labels:
    """Return the labels of `input[index]`, which has the shape of `out`."""
    items = list(index) if isinstance(index, tuple) else [index]
    taken = sum(_dims_taken(item) for item in items)
    if Ellipsis not in [item for item in items if isinstance(item, EllipsisType)]:
        items.append(Ellipsis)
    at = next(i for i, item in enumerate(items) if isinstance(item, EllipsisType))
    items[at : at + 1] = [slice(None)] * (input.ndim - taken)
    if any(isinstance(item, Tensor | list | np.ndarray) for item in items):
        return _indexed_by_tensors(trace, input, items, out.ndim)
    labels = trace.labels(input)
    position: list[int] = []
    old_dim = new_dim = 0
    for item in items:
        if item is None:
            new_dim += 1
        elif isinstance(item, slice):
            if item != slice(None):
                labels = _sliced(trace, labels, old_dim, item)
            position.append(new_dim)
            old_dim, new_dim = old_dim + 1, new_dim + 1
        else:
            labels = _picked(trace, out, labels, old_dim, int(item))
            position.append(-1)
            old_dim += 1
    return renumbered(labels, position)


def _indexed_by_tensors(trace: Trace, input: Tensor, items: Sequence[Any], out_ndim: int) -> Labels:
    """Return the labels of a tensor indexed by tensors; dimensions without an index keep their ids.

    The dimensions of the index tensors replace the indexed ones if these are adjacent. Otherwise
    they come first.
    """
    chosen = [i for i, item in enumerate(items) if not (item is None or isinstance(item, slice))]
    together = chosen[-1] - chosen[0] == len(chosen) - 1
    num_index_dims = out_ndim - (len(items) - len(chosen))
    labels = trace.labels(input)
    position: list[int] = []
    new_dim = 0 if together else num_index_dims
    for i, item in enumerate(items):
        if i in chosen:
            new_dim += num_index_dims if together and i == chosen[0] else 0
            position += [-1] * _dims_taken(item)
            continue
        if isinstance(item, slice):
            labels = labels if item == slice(None) else _sliced(trace, labels, len(position), item)
            position.append(new_dim)
        new_dim += 1
    kept: list[Label] = []
    for label in labels:
        if any(position[d] < 0 for d in label.dims):
            trace.pin(label.ids, "it is indexed by a tensor")
        else:
            kept.append(label)
    return renumbered(tuple(kept), position)


def _dims_taken(item: Any) -> int:
    if item is None or isinstance(item, EllipsisType):
        return 0
    if isinstance(item, Tensor) and item.dtype.is_floating_point is False and item.dim() > 0:
        return item.dim() if str(item.dtype) in ("torch.bool", "torch.uint8") else 1
    return 1


def _sliced(trace: Trace, labels: Labels, dim: int, part: slice) -> Labels:
    label = covering(labels, dim)
    if label is None:
        return labels
    for edge in (part.start, part.stop):
        _counted_along(trace, _cut(labels, dim, slice(edge)), dim, edge)
        if isinstance(edge, Size) and edge.divisor > 1 and edge.undivided == label.ids.size:
            # If the edge is a half (or third) of the units, tie corresponding units of all parts.
            trace.record.factors.append(label.ids.reshape(edge.divisor, -1))
    cut = _cut(labels, dim, part)
    kept = covering(cut, dim)
    if kept is not None and kept.ids.size < label.ids.size:
        trace.record.parted.append(kept.ids.ravel())
    return cut


def _cut(labels: Labels, dim: int, part: slice) -> Labels:
    return tuple(
        Label(label.dims, label.ids[(slice(None),) * label.dims.index(dim) + (part,)])
        if dim in label.dims
        else label
        for label in labels
    )


def _counted_along(trace: Trace, labels: Labels, dim: int, size: Any) -> None:
    """Note that `size` was given as the number of coordinates along `dim`."""
    label = covering(labels, dim)
    if label is not None:
        trace.counts(size, along(label, dim))


def _picked(trace: Trace, out: Tensor, labels: Labels, dim: int, index: int) -> Labels:
    """Return the labels after one coordinate of `dim` was selected, before renumbering."""
    kept = []
    for label in labels:
        if dim not in label.dims:
            kept.append(label)
            continue
        axis = label.dims.index(dim)
        ids = label.ids.take([index], axis=axis).squeeze(axis)
        if len(label.dims) == 1:
            trace.picked(out, ids.reshape(1))
        else:
            kept.append(Label(tuple(d for d in label.dims if d != dim), ids))
    return tuple(kept)


def _gap(ndim: int, dim: int) -> list[int]:
    return [d - (d > dim) for d in range(ndim)]
