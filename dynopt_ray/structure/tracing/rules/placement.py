"""Rules for operations that read or write places given by an index: gather, scatter, segments.

Rows of messages are added to rows of nodes, say. Along the indexed dimension the places come from
data, so units there are fixed. Along all other dimensions the operands meet elementwise, so units
there are tied: an index that was expanded along them (`index.expand_as(x)`) follows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import rule, with_in_place
from dynopt_ray.structure.tracing.rules.joining import matched_apart_from
from dynopt_ray.structure.tracing.rules.selection import setitem
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import covering, without

_INDEXED = "an index chooses places along it"


@rule("index_select")
def index_select(trace: Trace, out: Tensor, input: Tensor, dim: int, index: Tensor) -> None:
    """Some coordinates of one dimension are selected."""
    _pin_along(trace, (input,), dim)
    trace.pin(trace.labels(index), _INDEXED)
    trace.set(out, without(trace.labels(input), dim % max(input.ndim, 1)))


@rule("gather")
def gather(trace: Trace, out: Tensor, input: Tensor, dim: int, index: Tensor, **_: Any) -> None:
    """Entry (i, j) of the result is the entry (index[i, j], j) of the input, for dimension 0."""
    trace.use(input)
    trace.set(out, matched_apart_from(trace, [input, index], dim, _INDEXED))


@rule("take_along_dim")
def take_along_dim(
    trace: Trace, out: Tensor, input: Tensor, indices: Tensor, dim: int | None = None
) -> None:
    """As `gather`, with the index broadcast; without a dimension, of the flattened input."""
    trace.use(input)
    if dim is None:
        trace.pin((*trace.labels(input), *trace.labels(indices)), _INDEXED)
        trace.set(out, ())
        return
    with trace:
        # A sum with zeros repeats the index along the other dimensions, where units may lie.
        indices = indices + torch.zeros_like(input.narrow(dim, 0, 1), dtype=indices.dtype)
    gather(trace, out, input, dim, indices)


@rule(*with_in_place("scatter", "scatter_add", "scatter_reduce"))
def scatter(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    dim: int,
    index: Tensor,
    src: Any = None,
    *_: Any,
    **how: Any,
) -> None:
    """Entry (i, j) of the source is written, or added, to the entry (index[i, j], j)."""
    source = how.get("src", how.get("value", src))
    operands = [input, index, *tensors_in([source])]
    if operands[-1].ndim != input.ndim:  # one value for all places
        trace.pin(trace.labels(operands.pop()), "one unit is written to many places")
    for tensor in operands:
        trace.use(tensor)
    trace.set(out, matched_apart_from(trace, operands, dim, _INDEXED))


@rule(*with_in_place("index_add", "index_copy", "index_reduce"))
def index_add(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    dim: int,
    index: Tensor,
    source: Any = None,
    *_: Any,
    **how: Any,
) -> None:
    """Slice i of the source is written, or added, to slice `index[i]` of the input."""
    source = how.get("source", how.get("tensor", source))
    for tensor in (input, source):
        trace.use(tensor)
    trace.pin(trace.labels(index), _INDEXED)
    trace.set(out, matched_apart_from(trace, [input, source], dim, _INDEXED))


@rule(*with_in_place("index_fill"))
def index_fill(
    trace: Trace, out: Tensor, input: Tensor, dim: int, index: Tensor, *value: Any, **how: Any
) -> None:
    """Some coordinates of a dimension are set to one value."""
    _pin_along(trace, (input, index), dim)
    for tensor in tensors_in((value, how)):
        trace.pin(trace.labels(tensor), "one unit is written to many places")
    trace.set(out, without(trace.labels(input), dim % max(input.ndim, 1)))


@rule(*with_in_place("index_put"))
def index_put(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    indices: Sequence[Any],
    values: Tensor,
    *_: Any,
    **__: Any,
) -> None:
    """`input[indices] = values`, or the values are added there."""
    trace.use(input)
    trace.use(values)
    setitem(trace, None, input, tuple(indices), values)
    if out is not input:
        trace.set(out, trace.labels(input))


@rule("slice_scatter")
def slice_scatter(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    src: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> None:
    """A copy of the input in which a slice is overwritten."""
    dim %= input.ndim
    setitem(trace, None, input, (*[slice(None)] * dim, slice(start, end, step)), src)
    trace.set(out, trace.labels(input))


@rule("select_scatter")
def select_scatter(
    trace: Trace, out: Tensor, input: Tensor, src: Tensor, dim: int, index: int
) -> None:
    """A copy of the input in which one coordinate of a dimension is overwritten."""
    setitem(trace, None, input, (*[slice(None)] * (dim % input.ndim), index), src)
    trace.set(out, trace.labels(input))


@rule("segment_reduce")
def segment_reduce(
    trace: Trace, out: Tensor, data: Tensor, reduce: str, *args: Any, **how: Any
) -> None:
    """Consecutive slices along a dimension are summed or averaged, or their extremes are taken."""
    del reduce
    axis = how.pop("axis", 0) % data.ndim
    bounds = [*tensors_in((args, how))]
    kept = trace.labels(data)
    for label in kept:
        if any(d <= axis for d in label.dims):
            trace.pin(label.ids, "segments of data are reduced along it")
    for tensor in bounds:
        trace.pin(trace.labels(tensor), "it gives the bounds of segments")
    trace.use(data)
    trace.set(out, tuple(label for label in kept if all(d > axis for d in label.dims)))


def _pin_along(trace: Trace, tensors: Sequence[Tensor], dim: int) -> None:
    """Pin the units along one dimension of some tensors that an index chooses from."""
    for tensor in tensors:
        trace.use(tensor)
        label = covering(trace.labels(tensor), dim % max(tensor.ndim, 1))
        if label is not None:
            trace.pin(label.ids, _INDEXED)
