"""Rules for operations that join tensors along an old or a new dimension."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynopt_ray.structure.tracing.registry import joins_zeros, rule
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, Labels, covering, first_along, renumbered, spread

joins_zeros("cat", "concat", "concatenate", "stack")


@rule("cat", "concat", "concatenate")
def cat(trace: Trace, out: Tensor, tensors: Sequence[Tensor], dim: int = 0, **__: Any) -> None:
    """Units are concatenated along `dim`; along other dimensions they must match."""
    tensors = [t for t in tensors if t.numel() or t.ndim == out.ndim]
    dim %= out.ndim
    for tensor in tensors:
        trace.use(tensor)
    tensors = _without_empty(trace, tensors, dim)
    labels = _alike(trace, [trace.labels(tensor) for tensor in tensors], dim)
    joined = _join(trace, tensors, labels, dim)
    first, *others = [tuple(own for own in each if dim not in own.dims) for each in labels]
    for other in others:
        first = _matched(trace, first, other)
    trace.set(out, (*joined, *first))


@rule("stack")
def stack(trace: Trace, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    """Tensors, whose units must match, are stacked along a new dimension."""
    dim %= out.ndim
    for tensor in tensors:
        trace.use(tensor)
    first, *others = [trace.labels(tensor) for tensor in tensors]
    for other in others:
        first = _matched(trace, first, other)
    trace.set(out, renumbered(first, [d + (d >= dim) for d in range(out.ndim - 1)]))


@rule("hstack")
def hstack(trace: Trace, out: Tensor, tensors: Sequence[Tensor]) -> None:
    """Tensors are concatenated along the second dimension, vectors along the first."""
    _joined(trace, out, tensors, torch.atleast_1d, 0 if tensors[0].ndim < 2 else 1)


@rule("vstack", "row_stack")
def vstack(trace: Trace, out: Tensor, tensors: Sequence[Tensor]) -> None:
    """Tensors are concatenated along the first dimension, vectors as rows."""
    _joined(trace, out, tensors, torch.atleast_2d, 0)


@rule("dstack")
def dstack(trace: Trace, out: Tensor, tensors: Sequence[Tensor]) -> None:
    """Tensors are concatenated along the third dimension."""
    _joined(trace, out, tensors, torch.atleast_3d, 2)


@rule("column_stack")
def column_stack(trace: Trace, out: Tensor, tensors: Sequence[Tensor]) -> None:
    """Tensors are concatenated along the second dimension, vectors as columns."""
    _joined(trace, out, tensors, lambda t: t if t.ndim > 1 else t.reshape(-1, 1), 1)


def _joined(
    trace: Trace,
    out: Tensor,
    tensors: Sequence[Tensor],
    raised: Callable[[Tensor], Tensor],
    dim: int,
) -> None:
    """Trace a concatenation of tensors that first get enough dimensions."""
    with trace:
        result = torch.cat([raised(tensor) for tensor in tensors], dim)
    trace.set(out, trace.labels(result))


def _without_empty(trace: Trace, tensors: Sequence[Tensor], dim: int) -> Sequence[Tensor]:
    """Leave out slices without coordinates (`x[..., 4:]` of four), unless all are."""
    rest = [t for t in tensors if t.shape[dim] or covering(trace.labels(t), dim) is None]
    return rest or tensors


def _alike(trace: Trace, parts: Sequence[Labels], dim: int) -> Sequence[Labels]:
    """Make whole heads the units of all parts, if they are the units of one of them.

    Rotary positions tie the coordinates of each head. If they turn some coordinates only, the rest
    is concatenated to these.
    """
    whole = {label.dims for labels in parts for label in labels if dim not in label.dims}
    result = []
    for labels in parts:
        own = []
        for label in labels:
            if dim in label.dims and tuple(d for d in label.dims if d != dim) in whole:
                trace.tie(label.ids, label.ids.take([0], axis=label.dims.index(dim)))
                label = first_along(label, dim) or label
            own.append(label)
        result.append(tuple(own))
    return result


def _join(trace: Trace, tensors: Sequence[Tensor], given: Sequence[Labels], dim: int) -> Labels:
    """Return the label along the concatenated dimension; parts without units get pinned ids."""
    labels = [covering(each, dim) for each in given]
    dims = tuple(sorted({d for label in labels if label is not None for d in label.dims}))
    if not dims:
        return ()
    units = [label for label in labels if label is not None]
    if len(units) < len(labels) and all(label.ids.size == 1 for label in units):
        for alone in units:  # a class token before the tokens of the data
            trace.pin(alone.ids, "it is concatenated with data that has no units")
        return ()
    parts = []
    for tensor, label in zip(tensors, labels, strict=True):
        if label is None:
            plain = trace.record.fresh(tensor.shape[dim])
            trace.pin(plain, "it lies along data without units in a concatenation")
            label = Label((dim,), plain)
        parts.append(spread(label, dims, [tensor.shape[d] for d in dims]))
    return (Label(dims, np.concatenate(parts, axis=dims.index(dim))),)


def _matched(trace: Trace, one: Labels, other: Labels) -> Labels:
    """Tie labels that must match and return them; pin and drop those without a counterpart."""
    kept = []
    for label in one:
        twin = next((o for o in other if o.dims == label.dims), None)
        if twin is None:
            trace.pin(label.ids, "it is combined with data that has no units along this dimension")
        else:
            trace.tie(label.ids, twin.ids)
            kept.append(label)
    for label in other:
        if all(label.dims != k.dims for k in one):
            trace.pin(label.ids, "it is combined with data that has no units along this dimension")
    return tuple(kept)
