"""Rules for operations that rearrange, repeat or join tensors without selecting coordinates."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import joins_zeros, keeps_zeros, rule, with_in_place
from dynopt_ray.structure.tracing.rules.joining import broadcast
from dynopt_ray.structure.tracing.rules.sizes import counted, fresh_along, listed
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import (
    IdArray,
    Label,
    Labels,
    covering,
    renumbered,
    reshaped,
)

keeps_zeros(
    *("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "ravel", "permute"),
    *("transpose", "swapaxes", "swapdims", "t", "T", "mT", "movedim", "moveaxis", "unsqueeze"),
    *("squeeze", "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave"),
    *("chunk", "split", "split_with_sizes", "unbind", "__getitem__", "select", "narrow", "H", "mH"),
    *("adjoint", "view_as_real", "view_as_complex"),
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


@rule(*with_in_place("transpose", "swapaxes", "swapdims"))
def transpose(trace: Trace, out: Tensor, input: Tensor, dim0: int, dim1: int) -> None:
    """Two dimensions are swapped."""
    order = list(range(out.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    _reorder(trace, out, input, order)


@rule("t", "t_", "T", "mT", "H", "mH", "adjoint")
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


@rule("atleast_1d", "atleast_2d", "atleast_3d")
def atleast(trace: Trace, out: Any, *tensors: Any) -> None:
    """Dimensions of size 1 are added until there are enough."""
    for tensor, result in zip(tensors_in(tensors), tensors_in(out), strict=True):
        reshape(trace, result, tensor)


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


@rule("expand", "broadcast_to")
def expand(trace: Trace, out: Tensor, input: Tensor, *sizes: Any, **kwargs: Any) -> None:
    """Dimensions of size 1 are repeated. If the new size follows a width, the copies are units."""
    trace.use(input)
    arguments = listed(sizes or tuple(kwargs.values()))
    labels = broadcast(trace, [input], out)
    copies = fresh_along(trace, out, arguments, _copied(input, out, labels))
    trace.set(out, (*labels, *copies))
    counted(trace, out, arguments)


@rule("expand_as")
def expand_as(trace: Trace, out: Tensor, input: Tensor, other: Tensor) -> None:
    """Dimensions of size 1 are repeated; the copies are the units of the other tensor."""
    trace.use(input)
    labels = broadcast(trace, [input], out)
    copied = _copied(input, out, labels)
    copies = [label for label in trace.labels(other) if copied.issuperset(label.dims)]
    trace.set(out, (*labels, *copies))


@rule("broadcast_tensors")
def broadcast_tensors(trace: Trace, out: Sequence[Tensor], *tensors: Any) -> None:
    """Each tensor is repeated along the dimensions that it lacks, where others have units."""
    given = list(tensors_in(tensors))
    labels = broadcast(trace, given, out[0])
    for tensor, result in zip(given, out, strict=True):
        trace.use(tensor)
        trace.set(result, labels)


def _copied(input: Tensor, out: Tensor, labels: Labels) -> set[int]:
    """Return the dimensions of `out` along which one coordinate of `input` was repeated."""
    missing = out.ndim - input.ndim
    return {
        d
        for d in range(out.ndim)
        if (d < missing or input.shape[d - missing] == 1) and covering(labels, d) is None
    }


@rule("repeat", "tile")
def repeat(trace: Trace, out: Tensor, input: Tensor, *times: Any, **_: Any) -> None:
    """The whole tensor is repeated along some dimensions, block by block."""
    trace.use(input)
    offset = out.ndim - input.ndim
    labels = []
    for label in trace.labels(input):
        if any(1 == input.shape[d] < out.shape[d + offset] for d in label.dims):
            trace.pin(label.ids, "one unit is broadcast over a whole dimension")
            continue
        dims = tuple(d + offset for d in label.dims)
        counts = [out.shape[d] // input.shape[d - offset] for d in dims]
        labels.append(Label(dims, np.tile(label.ids, counts)))
    copied = _copied(input, out, tuple(labels))
    arguments = listed(times)
    labels += fresh_along(trace, out, arguments, copied)
    trace.set(out, tuple(labels))
    counted(trace, out, [n if d in copied else -1 for d, n in enumerate(arguments)])


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


@rule("channel_shuffle", "native_channel_shuffle")
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
