"""Rules for convolutions, pooling and other operations over space."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import rule
from dynopt_ray.structure.tracing.rules.joining import broadcast
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, Labels, without


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    """Dimension 1 of the weight reads the channels of `input`; dimension 0 makes channels.

    A grouped convolution keeps its number of groups, so channel i of every group is one unit. A
    depthwise convolution has as many groups as channels, and scales the units of its input.
    """
    channel = out.ndim - weight.ndim + 1
    num_channels = input.shape[channel]
    trace.hide(weight, range(2, weight.ndim))
    read, made = trace.units(weight, 1), trace.units(weight, 0)
    if groups == num_channels > 1:
        trace.use(weight, "scale")
        trace.hide(weight, [1])
        _depthwise(trace, input, weight, channel, groups)
    else:
        trace.use(weight, "out", "in")
        trace.makes(weight, 0)
        if read is not None:
            channels = np.tile(read, groups)
            trace.link("in_channels", channels, owner=weight)
            trace.match(input, channel, channels)
            trace.reads(weight, 1)
        if groups > 1 and made is not None:
            trace.tie(made.reshape(groups, -1), made.reshape(groups, -1)[:1])
        trace.consume(weight, out, bias=trace.name(bias), groups=groups)
    if made is not None:
        trace.link("out_channels", made, owner=weight)
    trace.use(bias, "out")
    if bias is not None:
        trace.match(bias, 0, made)
    rest = _along_space(trace, out, input, weight)
    labels = (*rest, *(() if made is None else (Label((channel,), made),)))
    trace.set(out, labels)
    kernel = weight[0, 0].numel() * _num_real(weight)
    if groups == num_channels > 1:
        trace.count(labels, [*out.shape, kernel])
    else:
        inner = () if read is None else (Label((out.ndim,), read),)
        trace.count((*labels, *inner), [*out.shape, weight.shape[1], kernel])


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> None:
    """Dimension 0 of the weight reads the channels of `input`; dimension 1 makes channels.

    As in other convolutions, the number of groups stays, unless each channel is a group.
    """
    channel = out.ndim - weight.ndim + 1
    trace.hide(weight, range(2, weight.ndim))
    if groups == input.shape[channel] > 1:
        _depthwise_transposed(trace, out, input, weight, bias, groups)
        return
    trace.use(weight, "in", "out")
    trace.makes(weight, 1)
    trace.use(bias, "out")
    read, made = trace.units(weight, 0), trace.units(weight, 1)
    trace.match(input, channel, read)
    trace.reads(weight, 0)
    trace.consume(weight, out, bias=trace.name(bias), groups=groups)
    if groups > 1 and read is not None:
        trace.tie(read.reshape(groups, -1), read.reshape(groups, -1)[:1])
    if read is not None:
        trace.link("in_channels", read, owner=weight)
    channels = None if made is None else np.tile(made, groups)
    if channels is not None:
        trace.link("out_channels", channels, owner=weight)
    if bias is not None:
        trace.match(bias, 0, channels)
    rest = _along_space(trace, out, input, weight)
    trace.set(out, (*rest, *(() if channels is None else (Label((channel,), channels),))))
    inner = () if made is None else (Label((out.ndim,), made),)
    kernel = weight[0, 0].numel() * _num_real(weight)
    labels = trace.labels(input)
    trace.count((*labels, *inner), [*input.shape, weight.shape[1], kernel])


def _pools(num_dims: int) -> tuple[str, ...]:
    """Return the names of torch's poolings over this many dimensions."""
    found = []
    for kind in ("avg", "max", "lp", "adaptive_avg", "adaptive_max", "fractional_max"):
        name = f"{kind}_pool{num_dims}d"
        found += [n for n in (name, f"{name}_with_indices") if hasattr(F, n) or hasattr(torch, n)]
    return tuple(found)


@rule(*_pools(1))
def over_one_dim(trace: Trace, out: Any, input: Tensor, *_: Any, **__: Any) -> None:
    """The last dimension is pooled."""
    _over_space(trace, out, input, 1)


@rule(*_pools(2))
def over_two_dims(trace: Trace, out: Any, input: Tensor, *_: Any, **__: Any) -> None:
    """The last two dimensions are pooled."""
    _over_space(trace, out, input, 2)


@rule(*_pools(3))
def over_three_dims(trace: Trace, out: Any, input: Tensor, *_: Any, **__: Any) -> None:
    """The last three dimensions are pooled."""
    _over_space(trace, out, input, 3)


@rule("max_unpool1d")
def unpooled_along(
    trace: Trace, out: Tensor, input: Tensor, indices: Tensor, *_: Any, **__: Any
) -> None:
    """Each value returns to the place in its channel from which a pooling took its maximum."""
    _unpooled(trace, out, input, indices, 1)


@rule("max_unpool2d")
def unpooled_over_plane(
    trace: Trace, out: Tensor, input: Tensor, indices: Tensor, *_: Any, **__: Any
) -> None:
    """The same over two dimensions."""
    _unpooled(trace, out, input, indices, 2)


@rule("max_unpool3d")
def unpooled_over_volume(
    trace: Trace, out: Tensor, input: Tensor, indices: Tensor, *_: Any, **__: Any
) -> None:
    """The same over three dimensions."""
    _unpooled(trace, out, input, indices, 3)


def _unpooled(trace: Trace, out: Tensor, input: Tensor, indices: Tensor, num_dims: int) -> None:
    trace.use(input)
    before = trace.labels(input)
    trace.set(input, broadcast(trace, [input, indices], input))
    _over_space(trace, out, input, num_dims)
    trace.set(input, before)


@rule("interpolate", "upsample")
def resampled(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """The dimensions of space are resampled; channels lie along dimension 1."""
    _over_space(trace, out, input, input.ndim - 2)


@rule("local_response_norm")
def local_response_norm(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """Each channel is normalised over its neighbours, which an edit would change."""
    for label in trace.labels(input):
        if 1 in label.dims:
            trace.pin(label.ids, "it is normalised over neighbouring channels")
    trace.set(out, trace.labels(input))


@rule("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def sampled(trace: Trace, out: Tensor, input: Tensor, grid: Tensor, *_: Any, **__: Any) -> None:
    """Each channel is sampled at the places that a grid gives."""
    trace.use(grid)
    trace.pin(trace.labels(grid), "it gives the places at which another tensor is sampled")
    _over_space(trace, out, input, input.ndim - 2)


@rule("affine_grid", "affine_grid_generator")
def grid(trace: Trace, out: Tensor, theta: Tensor, *_: Any, **__: Any) -> None:
    """The places of a grid under an affine map."""
    trace.use(theta)
    trace.pin(trace.labels(theta), "it maps the two or three coordinates of space")
    trace.set(out, ())


def _num_real(weight: Tensor) -> int:
    """Return the number of real convolutions by which torch computes one with this weight."""
    return 3 if weight.is_complex() else 1


def _over_space(trace: Trace, out: Any, input: Tensor, num_dims: int) -> None:
    """Keep the labels of channels, and pin units along space."""
    for tensor in tensors_in(out):
        kept = []
        for label in trace.labels(input):
            before = all(d < input.ndim - num_dims for d in label.dims)
            if before and all(tensor.shape[d] == input.shape[d] for d in label.dims):
                kept.append(label)
            else:
                trace.pin(label.ids, "it is pooled or resampled along this dimension")
        trace.set(tensor, tuple(kept))


def _along_space(trace: Trace, out: Tensor, input: Tensor, weight: Tensor) -> Labels:
    """Return the labels that remain along batch and space; results along space mix neighbours."""
    channel = out.ndim - weight.ndim + 1
    kept = []
    for label in without(trace.labels(input), channel):
        moved = [d for d in label.dims if d > channel and weight.shape[d - out.ndim] > 1]
        if any(out.shape[d] != input.shape[d] for d in label.dims):
            trace.pin(label.ids, "a convolution changes its size along this dimension")
            continue
        if moved:
            trace.mix(label.ids)
        kept.append(label)
    return tuple(kept)


def _depthwise(trace: Trace, input: Tensor, weight: Tensor, channel: int, groups: int) -> None:
    """Tie channel j of the input to the channels j·m … j·m + m - 1 that are made from it."""
    made = trace.units(weight, 0)
    if made is None:
        trace.match(input, channel, None)
        return
    per_channel = made.reshape(input.shape[channel], -1)
    trace.tie(per_channel, per_channel[:, :1])
    trace.match(input, channel, per_channel[:, 0])
    trace.counts(groups, per_channel[:, 0])
    for attribute in ("in_channels", "groups"):
        trace.link(attribute, per_channel[:, 0], owner=weight)


def _depthwise_transposed(
    trace: Trace, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> None:
    """Tie channel j of the input to the channels j·m … j·m + m - 1 that are made from it."""
    channel = out.ndim - weight.ndim + 1
    trace.use(weight, "scale")
    trace.hide(weight, [1])
    units = trace.units(weight, 0)
    trace.match(input, channel, units)
    trace.use(bias, "out")
    made = None
    if units is not None:
        trace.counts(groups, units)
        for attribute in ("in_channels", "groups"):
            trace.link(attribute, units, owner=weight)
        made = np.repeat(units, weight.shape[1])
        trace.link("out_channels", made, owner=weight)
    if bias is not None:
        trace.match(bias, 0, made)
    labels = (
        *_along_space(trace, out, input, weight),
        *(() if made is None else (Label((channel,), made),)),
    )
    trace.set(out, labels)
    trace.count(trace.labels(input), [*input.shape, weight[0].numel() * _num_real(weight)])
