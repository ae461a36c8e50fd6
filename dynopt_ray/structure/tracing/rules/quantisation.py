"""Rules for fake quantisation, which rounds values to the steps that quantised ones would have.

The state is a scale and a zero point, and the smallest and largest value seen so far. Per channel,
these are vectors whose entries belong to the units along one dimension, and follow them.

Growth is not exact: as long as a scale is computed anew in each pass, it depends on all values that
share it, and copies of a unit share its outgoing weights, which are rounded.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dynopt_ray.structure.tracing.quantisers import is_on, observes
from dynopt_ray.structure.tracing.registry import rule
from dynopt_ray.structure.tracing.tracer import Trace

_SHARED = "it is one scale or range for a whole tensor"
_LATER = (
    "its fake quantiser gets a scale for each channel in its first pass; run the network once and "
    "trace it again"
)


@rule("fused_moving_avg_obs_fake_quant")
def observed(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    observer_on: Tensor,
    fake_quant_on: Tensor,
    running_min: Tensor,
    running_max: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    averaging_const: float,
    quant_min: int,
    quant_max: int,
    ch_axis: int,
    per_row_fake_quant: bool = False,
    symmetric_quant: bool = False,
) -> None:
    """The range is updated from the input, the scale computed from the range, the input rounded."""
    del fake_quant_on, averaging_const, quant_min, quant_max, symmetric_quant
    axis = ch_axis % input.ndim if per_row_fake_quant else None
    state = (running_min, running_max, scale, zero_point)
    _rounded(trace, out, input, state, axis, is_on(observer_on))


@rule("fake_quantize_per_channel_affine", "_fake_quantize_learnable_per_channel_affine")
def per_channel(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int,
    *_: Any,
    **__: Any,
) -> None:
    """Each channel is rounded to steps of its own."""
    module = trace.within_quantiser
    _rounded(trace, out, input, (scale, zero_point), axis % input.ndim, observes(module))
    observer: Any = getattr(module, "activation_post_process", None)
    for name in ("min_val", "max_val"):  # not read while the observer is off
        seen = getattr(observer, name, None)
        if isinstance(seen, Tensor) and seen.shape == scale.shape:
            trace.use(seen, "scale")
            _along_channels(trace, input, seen, axis % input.ndim)


@rule("fake_quantize_per_tensor_affine", "_fake_quantize_learnable_per_tensor_affine")
def per_tensor(
    trace: Trace, out: Tensor, input: Tensor, scale: Any, zero_point: Any, *_: Any, **__: Any
) -> None:
    """All values are rounded to the same steps."""
    state = [t for t in (scale, zero_point) if isinstance(t, Tensor)]
    _rounded(trace, out, input, state, None, observes(trace.within_quantiser))


@rule("quantize_per_tensor", "quantize_per_tensor_dynamic", "dequantize", "int_repr")
def quantised(trace: Trace, out: Tensor, input: Tensor, *args: Any, **_: Any) -> None:
    """Values become whole numbers with one scale, or the reverse."""
    state = [t for t in args if isinstance(t, Tensor)]
    _rounded(trace, out, input, state, None, on=False)


def _rounded(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    state: Sequence[Tensor],
    axis: int | None,
    on: bool,
) -> None:
    """Trace the rounding of `input`.

    Args:
        trace: the trace.
        out: the result.
        input: the values.
        state: scale, zero point and range.
        axis: the dimension along which each coordinate has a scale; None for one scale.
        on: whether the scale is computed from the input in this pass.
    """
    trace.use(input)
    for tensor in state:
        trace.use(tensor, "scale")
        if axis is None:
            trace.pin(trace.labels(tensor), _SHARED)
        else:
            trace.own(tensor)
            _along_channels(trace, input, tensor, axis)
    for label in trace.labels(input):
        if (on or input in trace.weights) and label.dims != (axis,):
            trace.inexact.mixes(label.ids, why="rounds all of them alike")
    trace.set(out, trace.labels(input))
    trace.weights.pass_on(input, out)


def _along_channels(trace: Trace, input: Tensor, tensor: Tensor, axis: int) -> None:
    """Tie a vector of the state to the channels; before its first pass, it has other sizes."""
    sizes = [label.ids.size for label in trace.labels(tensor)]
    if sizes == [input.shape[axis]]:
        trace.match(tensor, 0, trace.units(input, axis))
    else:
        for owner, dim in ((tensor, 0), (input, axis)):
            ids = trace.units(owner, dim)
            if ids is not None:
                trace.pin(ids, _LATER)
