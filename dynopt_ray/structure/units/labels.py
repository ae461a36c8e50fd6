"""Labels: which units the coordinates of a tensor belong to.

A label covers some dimensions of a tensor and holds one unit id per coordinate of these dimensions.
Shape operations act on the ids as they act on the data. Dimensions without a label (batch, space,
and others whose size comes from the caller's data) carry no units. One label may cover several
dimensions: after a `view` of 12 channels as 3 heads of 4, coordinate (h, d) is still one of the 12
units.
"""

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IdArray = npt.NDArray[np.integer[Any]]
"""Unit ids, or indices computed from them."""

ID = np.int32
"""The dtype of ids. A trace makes many short-lived arrays of ids; 32 bits halve its memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """Unit ids along some dimensions of one tensor.

    Attributes:
        dims: the dimensions covered, in increasing order.
        ids: int32 array with one axis per covered dimension, of that dimension's size.
    """

    dims: tuple[int, ...]
    ids: IdArray


Labels = tuple[Label, ...]


def covering(labels: Labels, dim: int) -> Label | None:
    """Return the label that covers `dim`, or None."""
    for label in labels:
        if dim in label.dims:
            return label
    return None


def along(label: Label, *dims: int) -> IdArray:
    """Return the ids along `dims`, at the first coordinate of the label's other dimensions."""
    return label.ids[tuple(slice(None) if d in dims else 0 for d in label.dims)]


def without(labels: Labels, dim: int) -> Labels:
    """Return the labels that do not cover `dim`."""
    return tuple(label for label in labels if dim not in label.dims)


def renumbered(labels: Labels, new_dim: Sequence[int]) -> Labels:
    """Return the labels after dimension `d` of the tensor became dimension `new_dim[d]`."""
    moved = []
    for label in labels:
        dims = [new_dim[d] for d in label.dims]
        order = sorted(range(len(dims)), key=dims.__getitem__)
        moved.append(Label(tuple(dims[i] for i in order), label.ids.transpose(order)))
    return tuple(moved)


def spread(label: Label, dims: Sequence[int], sizes: Sequence[int]) -> IdArray:
    """Return the ids with one axis per entry of `dims`, repeated along dims not in the label."""
    shape = [size if d in label.dims else 1 for d, size in zip(dims, sizes, strict=True)]
    return np.broadcast_to(label.ids.reshape(shape), tuple(sizes))


def first_along(label: Label, dim: int) -> Label | None:
    """Return the label at the first coordinate of `dim`; None if it covers no other dimension."""
    axis = label.dims.index(dim)
    dims = tuple(d for d in label.dims if d != dim)
    return Label(dims, label.ids.take([0], axis=axis).squeeze(axis)) if dims else None


def reshaped(labels: Labels, old: Sequence[int], new: Sequence[int]) -> Labels:
    """Return the labels after a row-major view of the tensor from sizes `old` to sizes `new`.

    A label keeps only the new dimensions along which its units differ. So 8 channels of 3 × 3,
    flattened to 72 and viewed back, are 8 channels again.
    """
    if not labels:
        return ()
    segments = _segments(old, new)
    return tuple(_reshaped(label, old, new, segments) for label in labels)


def _reshaped(
    label: Label,
    old: Sequence[int],
    new: Sequence[int],
    segments: Sequence[tuple[range, range]],
) -> Label:
    touched = [(o, n) for o, n in segments if any(d in o for d in label.dims)]
    if all(len(o) == len(n) == 1 for o, n in touched):
        return Label(tuple(n[0] for _, n in touched), label.ids)
    old_dims = [d for o, _ in touched for d in o]
    new_dims = [d for _, n in touched for d in n]
    ids = spread(label, old_dims, [old[d] for d in old_dims])
    ids = ids.reshape([new[d] for d in new_dims])
    kept = {d for o, n in touched for d in _overlapping(label, o, n, old, new)}
    for axis, dim in reversed(list(enumerate(new_dims))):
        first = ids.take([0], axis=axis)
        if dim not in kept or (len(kept) > 1 and bool((ids == first).all())):
            kept.discard(dim)
            ids = first.squeeze(axis)
    return Label(tuple(sorted(kept)), ids)


def _segments(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Return the smallest runs of old and new dimensions that hold the same elements."""
    segments = []
    i = j = 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        old_size = new_size = 1
        if i < len(old):
            old_size, i = old[i], i + 1
        if j < len(new):
            new_size, j = new[j], j + 1
        while old_size != new_size:
            if old_size < new_size and i < len(old):
                old_size, i = old_size * old[i], i + 1
            elif j < len(new):
                new_size, j = new_size * new[j], j + 1
            else:  # an empty tensor: the remaining dimensions form one segment
                i, j = len(old), len(new)
                break
        if i == len(old):
            j = len(new)  # trailing sizes of 1 belong to the last segment
        elif j == len(new):
            i = len(old)
        segments.append((range(start_i, i), range(start_j, j)))
    return segments


def _overlapping(
    label: Label, old_dims: range, new_dims: range, old: Sequence[int], new: Sequence[int]
) -> list[int]:
    """Return the new dimensions of one segment that hold part of the label's old dimensions.

    Each dimension occupies an interval of cumulative sizes; dimensions whose intervals overlap
    share elements. A dimension of size 1 occupies a point and goes to the new dimension that
    starts there.
    """
    old_spans = dict(zip(old_dims, _spans([old[d] for d in old_dims]), strict=True))
    new_spans = dict(zip(new_dims, _spans([new[d] for d in new_dims]), strict=True))
    kept: list[int] = []
    for start, stop in (old_spans[d] for d in label.dims if d in old_spans):
        inside = [
            d for d, (a, b) in new_spans.items() if (a < stop and start < b) or start == stop == a
        ]
        if not inside:
            inside = list(new_dims)[-1:]
        kept += inside[:1] if start == stop else inside
    return kept


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the interval of cumulative sizes that each dimension occupies, outermost first."""
    ends = list(itertools.accumulate(sizes, operator.mul, initial=1))
    return list(itertools.pairwise(ends))
