"""Rules for normalisation layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dynopt_ray.structure.tracing.registry import keeps_zeros, rule
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import IdArray, Label, Role, WeightNorm, covering, without


@rule("batch_norm", "instance_norm")
def batch_norm(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: object,
    **__: object,
) -> None:
    """Each channel is normalised separately, so a channel does not affect the others."""
    channels = _scaled_by(trace, input, 1, (weight, bias, running_mean, running_var))
    if channels is not None:
        trace.link("num_features", channels)
    _mix_all_but(trace, input, 1)
    trace.normalised(input, running_mean)
    trace.set(out, trace.labels(input))


@rule(torch.batch_norm, torch.instance_norm)
def plain_batch_norm(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *_: object,
) -> None:
    """The functions of `torch` itself, which take scale and shift before the statistics."""
    batch_norm(trace, out, input, running_mean, running_var, weight, bias)


@rule("layer_norm", "rms_norm")
def layer_norm(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> None:
    """Mean and variance over the last dimensions, which depend on the number of units there."""
    del eps
    first = input.ndim - len(normalized_shape)
    for index in range(len(normalized_shape)):
        label = covering(trace.labels(input), first + index)
        if label is not None and len(label.dims) > 1 and label.dims[0] < first:
            # A norm over the coordinates of each head, with one scale for all heads.
            trace.mix(label.ids, label.dims.index(first + index))
            for parameter in (weight, bias):
                if parameter is not None:
                    trace.use(parameter)
                    trace.pin(trace.labels(parameter), "it is shared by all heads")
            continue
        units = _scaled_by(trace, input, first + index, (weight, bias), index)
        if units is not None:
            trace.mix(units)
            trace.counts(normalized_shape[index], units)
    trace.set(out, trace.labels(input))


@rule("group_norm")
def group_norm(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> None:
    """Mean and variance within each group of channels.

    Units are whole groups, which do not affect the statistics of other groups. With a single group,
    units are channels, and the statistics depend on their number as in a LayerNorm.
    """
    del eps
    channels = _scaled_by(trace, input, 1, (weight, bias))
    if channels is not None:
        trace.link("num_channels", channels)
        if num_groups > 1:
            grouped = channels.reshape(num_groups, -1)
            trace.tie(grouped, grouped[:, :1])
            trace.link("num_groups", grouped[:, 0])
        else:
            trace.mix(channels)
    _mix_all_but(trace, input, 1)
    trace.set(out, trace.labels(input))


keeps_zeros("_weight_norm")


@rule("_weight_norm")
def weight_norm(trace: Trace, out: Tensor, v: Tensor, g: Tensor, dim: int = 0) -> None:
    """Weight normalisation: `g * v / |v|`, with one norm per coordinate of `dim`, or one for all.

    If a new unit has a norm of its own and its weight has to be zero, the gain `g` is zero, because
    0/0 is undefined. Otherwise the part of `v` is zero. Whatever changes the norms, edits rescale
    the gains, so that the other weights stay as they are.
    """
    whole = dim == -1  # torch's sign for one norm of all entries
    dim %= v.ndim
    trace.use(v)
    scaled = {dim} & set(range(g.ndim))
    trace.use(g, *["scale" if d in scaled else None for d in range(g.ndim)])
    trace.hide(g, [d for d in range(g.ndim) if d not in scaled])
    labels = []
    for label in trace.labels(v):
        if label.dims == (dim,) and not whole:
            trace.match(g, dim, label.ids)
            gains = trace.units(g, dim)
            label = label if gains is None else Label(label.dims, gains)
        labels.append(label)
    gain, direction = trace.name(g), trace.name(v)
    if gain is not None and direction is not None:
        trace.record.weight_norms.append(WeightNorm(gain, direction, None if whole else dim))
    else:
        for label in labels if whole else without(tuple(labels), dim):
            trace.inexact.norms(label.ids)
    trace.set(out, tuple(labels))


def _mix_all_but(trace: Trace, input: Tensor, dim: int) -> None:
    """Note that statistics over all other dimensions depend on the number of units there."""
    for label in trace.labels(input):
        if label.dims != (dim,):
            trace.mix(label.ids)


def _scaled_by(
    trace: Trace,
    input: Tensor,
    dim: int,
    parameters: Sequence[Tensor | None],
    own_dim: int = 0,
) -> IdArray | None:
    """Tie one dimension of the input to its scales, shifts and statistics; return its ids."""
    units = trace.units(input, dim)
    for parameter in parameters:
        if parameter is not None:
            roles: list[Role | None] = [None] * own_dim
            trace.use(parameter, *roles, "scale")
            trace.match(parameter, own_dim, units)
    return units
