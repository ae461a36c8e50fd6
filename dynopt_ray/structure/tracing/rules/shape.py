"""Rules for operations that rearrange, repeat or join tensors without selecting coordinates."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dynopt_ray.structure.tracing.counts import Size
from dynopt_ray.structure.tracing.registry import joins_zeros, keeps_zeros, rule
from dynopt_ray.structure.tracing.rules.joining import broadcast
from dynopt_ray.structure.tracing.rules.sizes import counted, listed
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import (
    IdArray,
    Label,
    Labels,
    covering,
    renumbered,
    reshaped,
    spread,
)

keeps_zeros(
    *("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "ravel", "permute"),
    *("transpose", "swapaxes", "swapdims", "t", "T", "mT", "movedim", "moveaxis", "unsqueeze"),
    *("squeeze", "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave"),
    *("chunk", "split", "split_with_sizes", "unbind", "__getitem__", "select", "narrow"),
)
joins_zeros("cat", "concat", "concatenate", "stack")


@rule("view", "reshape", "flatten", "view_as", "reshape_as", "ravel")
def reshape(trace: Trace, out: Tensor, input: Tensor, *sizes: Any, **__: Any) -> None:
    """Any row-major view. Flattening 8 channels of 3 × 3 gives 72 coordinates of 8 units."""
    trace.use(input)
    old = trace.labels(input)
    labels = []
    for before, after in zip(old, reshaped(old, input.shape, out.shape), strict=True):
        if len(after.dims) > len(before.dims):
            # The view must stay rectangular, so whole rows or whole columns are units.
            trace.record.factors.append(after.ids)
            labels.append(after if trace.heads == "heads" else _columns(trace, after))
        else:
            labels.append(after)
    trace.set(out, tuple(labels))
    counted(trace, out, listed(sizes))


@rule("unflatten")
def unflatten(trace: Trace, out: Tensor, input: Tensor, dim: int, sizes: Sequence[int]) -> None:
    """One dimension is split into several."""
    before = dim % input.ndim
    untouched = [-1] * (out.ndim - before - len(sizes))
    reshape(trace, out, input, *[-1] * before, *sizes, *untouched)


@rule("permute")
def permute(trace: Trace, out: Tensor, input: Tensor, *dims: Any, **kwargs: Any) -> None:
    """Dimensions are reordered."""
    order = kwargs.get("dims", dims)
    if len(order) == 1 and not isinstance(order[0], int):
        order = order[0]
    _reorder(trace, out, input, order)


@rule("transpose", "swapaxes", "swapdims", "transpose_")
def transpose(trace: Trace, out: Tensor, input: Tensor, dim0: int, dim1: int) -> None:
    """Two dimensions are swapped."""
    order = list(range(out.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    _reorder(trace, out, input, order)


@rule("t", "T", "mT")
def matrix_transpose(trace: Trace, out: Tensor, input: Tensor) -> None:
    """The last two dimensions are swapped; a vector stays as it is."""
    order = list(range(out.ndim))
    order[-2:] = order[-2:][::-1]
    _reorder(trace, out, input, order)


@rule("movedim", "moveaxis")
def movedim(trace: Trace, out: Tensor, input: Tensor, source: Any, destination: Any) -> None:
    """Some dimensions move; the others keep their order."""
    from_, to = ([d] if isinstance(d, int) else d for d in (source, destination))
    places = dict(zip([d % input.ndim for d in to], [d % input.ndim for d in from_], strict=True))
    rest = iter([d for d in range(input.ndim) if d not in places.values()])
    _reorder(
        trace, out, input, [places[d] if d in places else next(rest) for d in range(input.ndim)]
    )


@rule("unsqueeze", "unsqueeze_")
def unsqueeze(trace: Trace, out: Tensor, input: Tensor, dim: int) -> None:
    """A dimension of size 1 is inserted."""
    trace.use(input)
    new_dim = dim % out.ndim
    trace.set(out, renumbered(trace.labels(input), [d + (d >= new_dim) for d in range(input.ndim)]))


@rule("squeeze", "squeeze_")
def squeeze(trace: Trace, out: Tensor, input: Tensor, dim: Any = None) -> None:
    """Dimensions of size 1 are removed. A dimension with a single unit becomes fixed."""
    trace.use(input)
    dims = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % input.ndim for d in dims if input.shape[d] == 1}
    labels = trace.labels(input)
    if dim is None:
        trace.record.never_one += [wide.ids.ravel() for wide in labels]
    for d in gone:
        label = covering(labels, d)
        if label is not None:
            trace.pin(label.ids, "a dimension with a single unit is squeezed away")
            labels = tuple(other for other in labels if other is not label)
    position = np.cumsum([d not in gone for d in range(input.ndim)]) - 1
    trace.set(out, renumbered(labels, position.tolist()))


@rule("expand", "expand_as", "broadcast_to")
def expand(trace: Trace, out: Tensor, input: Tensor, *sizes: Any, **__: Any) -> None:
    """Dimensions of size 1 are repeated. If the new size follows a width, the copies are units."""
    trace.use(input)
    labels = list(broadcast(trace, [input], out))
    arguments = listed(sizes)
    for dim, size in enumerate(arguments if len(arguments) == out.ndim else ()):
        # The copies get new ids, which are tied to the units that they meet.
        old = dim - out.ndim + input.ndim
        if isinstance(size, Size) and (old < 0 or input.shape[old] == 1):
            labels.append(Label((dim,), trace.record.fresh(out.shape[dim])))
    trace.set(out, tuple(labels))
    counted(trace, out, arguments)


@rule("repeat", "tile")
def repeat(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """The whole tensor is repeated along some dimensions, block by block."""
    trace.use(input)
    offset = out.ndim - input.ndim
    labels = []
    for label in trace.labels(input):
        if any(1 == input.shape[d] < out.shape[d + offset] for d in label.dims):
            trace.pin(label.ids, "one unit is broadcast over a whole dimension")
            continue
        dims = tuple(d + offset for d in label.dims)
        times = [out.shape[d] // input.shape[d - offset] for d in dims]
        labels.append(Label(dims, np.tile(label.ids, times)))
    trace.set(out, tuple(labels))


@rule("repeat_interleave")
def repeat_interleave(
    trace: Trace, out: Tensor, input: Tensor, repeats: Any, dim: int | None = None, **_: Any
) -> None:
    """Each coordinate is repeated in place."""
    trace.use(input)
    labels = []
    for label in trace.labels(input):
        if dim is None or not isinstance(repeats, int):
            trace.pin(label.ids, "it is repeated a number of times that depends on data")
        elif dim % input.ndim in label.dims:
            axis = label.dims.index(dim % input.ndim)
            labels.append(Label(label.dims, label.ids.repeat(repeats, axis=axis)))
        else:
            labels.append(label)
    trace.set(out, tuple(labels))


@rule("pixel_shuffle")
def pixel_shuffle(trace: Trace, out: Tensor, input: Tensor, upscale_factor: int) -> None:
    """Each r × r consecutive channels become one channel with r × r times the pixels."""
    _regroup(trace, out, input, lambda ids: ids.reshape(-1, upscale_factor**2))


@rule("pixel_unshuffle")
def pixel_unshuffle(trace: Trace, out: Tensor, input: Tensor, downscale_factor: int) -> None:
    """The pixels of each r × r square become r × r consecutive channels."""
    _regroup(trace, out, input, lambda ids: ids.repeat(downscale_factor**2)[:, None])


@rule("channel_shuffle")
def channel_shuffle(trace: Trace, out: Tensor, input: Tensor, groups: int) -> None:
    """Channels are reordered: channel i of every group comes before channel i + 1 of any group."""
    label = covering(trace.labels(input), input.ndim - 3)
    if label is not None:
        trace.record.factors.append(label.ids.reshape(groups, -1))
    _regroup(trace, out, input, lambda ids: ids.reshape(groups, -1).T.reshape(-1, 1))


def _regroup(
    trace: Trace, out: Tensor, input: Tensor, regroup: Callable[[IdArray], IdArray]
) -> None:
    """Arrange channels in rows; the channels of a row are tied and become one channel."""
    trace.use(input)
    channel = input.ndim - 3
    labels = []
    for label in trace.labels(input):
        if label.dims == (channel,):
            rows = regroup(label.ids)
            trace.tie(rows, rows[:, :1])
            labels.append(Label((channel,), rows[:, 0]))
        elif channel - 1 in label.dims and len(label.dims) == 1:
            labels.append(label)
        else:
            trace.pin(label.ids, "a shuffle of pixels or channels moves its units")
    trace.set(out, tuple(labels))


@rule("cat", "concat", "concatenate")
def cat(trace: Trace, out: Tensor, tensors: Sequence[Tensor], dim: int = 0, **__: Any) -> None:
    """Units are concatenated along `dim`; along other dimensions they must match."""
    tensors = [t for t in tensors if t.numel() or t.ndim == out.ndim]
    dim %= out.ndim
    for tensor in tensors:
        trace.use(tensor)
    joined = _join(trace, tensors, dim)
    first, *others = [_apart_from(trace, tensor, dim) for tensor in tensors]
    for other in others:
        first = _matched(trace, first, other)
    trace.set(out, (*joined, *first))


@rule("stack")
def stack(trace: Trace, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    """Tensors, whose units must match, are stacked along a new dimension."""
    dim %= out.ndim
    first, *others = [trace.labels(tensor) for tensor in tensors]
    for other in others:
        first = _matched(trace, first, other)
    trace.set(out, renumbered(first, [d + (d >= dim) for d in range(out.ndim - 1)]))


def _columns(trace: Trace, label: Label) -> Label:
    """Tie units across all dimensions except the last, along which they then lie."""
    row = label.ids[(0,) * (label.ids.ndim - 1)]
    trace.tie(label.ids, row)
    return Label(label.dims[-1:], row)


def _reorder(trace: Trace, out: Tensor, input: Tensor, order: Sequence[int]) -> None:
    """Label an output whose dimension i is dimension `order[i]` of the input."""
    trace.use(input)
    new_dim = np.argsort([d % input.ndim for d in order])
    trace.set(out, renumbered(trace.labels(input), new_dim.tolist()))


def _join(trace: Trace, tensors: Sequence[Tensor], dim: int) -> Labels:
    """Return the label along the concatenated dimension; parts without units get pinned ids."""
    labels = [covering(trace.labels(tensor), dim) for tensor in tensors]
    dims = tuple(sorted({d for label in labels if label is not None for d in label.dims}))
    if not dims:
        return ()
    given = [label for label in labels if label is not None]
    if len(given) < len(labels) and all(label.ids.size == 1 for label in given):
        for alone in given:  # a class token before the tokens of the data
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


def _apart_from(trace: Trace, tensor: Tensor, dim: int) -> Labels:
    return tuple(label for label in trace.labels(tensor) if dim not in label.dims)


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
