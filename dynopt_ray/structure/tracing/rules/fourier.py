"""Rules for Fourier transforms and complex numbers."""

from typing import Any

from torch import Tensor

from dynopt_ray.structure.tracing.registry import rule
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import first_along


@rule("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
def along_one(
    trace: Trace, out: Tensor, input: Tensor, n: Any = None, dim: int = -1, *_: Any, **__: Any
) -> None:
    """A transform along one dimension, whose coordinates become frequencies."""
    del n
    _transformed(trace, out, input, [dim])


@rule("fft2", "ifft2", "rfft2", "irfft2", "hfft2", "ihfft2")
def along_two(
    trace: Trace, out: Tensor, input: Tensor, s: Any = None, dim: Any = (-2, -1), *_: Any, **__: Any
) -> None:
    """A transform along two dimensions."""
    del s
    _transformed(trace, out, input, (-2, -1) if dim is None else dim)


@rule("fftn", "ifftn", "rfftn", "irfftn", "hfftn", "ihfftn")
def along_several(
    trace: Trace, out: Tensor, input: Tensor, s: Any = None, dim: Any = None, *_: Any, **__: Any
) -> None:
    """A transform along some dimensions: by default the last ones of given sizes, or all."""
    first = 0 if s is None else input.ndim - len(s)
    _transformed(trace, out, input, range(first, input.ndim) if dim is None else dim)


@rule("stft")
def windowed(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """Windows of a signal are transformed; the signal lies along the last dimension."""
    _transformed(trace, out, input, [-1])


@rule("istft")
def windows_joined(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """A signal is put together from its transformed windows."""
    _transformed(trace, out, input, [-2, -1])


def _transformed(trace: Trace, out: Tensor, input: Tensor, dims: Any) -> None:
    """Pin the units along dimensions that are transformed; each result there mixes all of them."""
    trace.use(input)
    gone = {d % input.ndim for d in ([dims] if isinstance(dims, int) else dims)}
    kept = []
    for label in trace.labels(input):
        if gone.isdisjoint(label.dims):
            kept.append(label)
        else:
            trace.pin(label.ids, "a Fourier transform runs along it")
    trace.set(out, tuple(kept))


@rule("view_as_complex")
def view_as_complex(trace: Trace, out: Tensor, input: Tensor) -> None:
    """The last dimension has two coordinates: real and imaginary part of the same units."""
    trace.use(input)
    trace.hide(input, [input.ndim - 1])
    kept = []
    for label in trace.labels(input):
        if input.ndim - 1 not in label.dims:
            kept.append(label)
            continue
        rest = first_along(label, input.ndim - 1)
        if rest is None:
            trace.pin(label.ids, "it holds the real and the imaginary part")
        else:
            trace.tie(label.ids, label.ids.take([0], axis=label.dims.index(input.ndim - 1)))
            kept.append(rest)
    trace.set(out, tuple(kept))


@rule("view_as_real")
def view_as_real(trace: Trace, out: Tensor, input: Tensor) -> None:
    """A last dimension is added for the real and the imaginary part."""
    trace.use(input)
    trace.set(out, trace.labels(input))
