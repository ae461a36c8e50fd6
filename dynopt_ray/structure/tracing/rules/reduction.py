"""Rules for sums, means, extremes, norms and distributions over dimensions."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import keeps_zeros, rule
from dynopt_ray.structure.tracing.rules.joining import broadcast, summed_over
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, covering, renumbered


@rule(
    *("mean", "amax", "amin", "max", "min", "std", "var", "prod", "logsumexp", "nanmean"),
    *("median", "all", "any", "argmax", "argmin", "std_mean", "var_mean", "aminmax"),
)
def reduce(trace: Trace, out: Any, input: Tensor, dim: Any = None, *_: Any, **kwargs: Any) -> None:
    """Dimensions are reduced; the result depends on the number of units along them."""
    _reduce(trace, out, input, kwargs.get("axis", dim), _mixed, kwargs)


@rule("sum", "nansum")
def summed(trace: Trace, out: Any, input: Tensor, dim: Any = None, *_: Any, **kwargs: Any) -> None:
    """A sum reads units if the weights that scale them are zero for new units; see `Weights`."""
    _reduce(trace, out, input, kwargs.get("axis", dim), _summed, kwargs)


@rule("norm")
def norm(
    trace: Trace, out: Tensor, input: Tensor, p: Any = "fro", dim: Any = None, *_: Any, **__: Any
) -> None:
    """The norm over some dimensions. That of weights is the same if those of new units are zero."""
    del p
    _reduce(trace, out, input, dim, _normed)


@rule("vector_norm")
def vector_norm(
    trace: Trace, out: Tensor, input: Tensor, ord: Any = 2, dim: Any = None, *_: Any, **__: Any
) -> None:
    """The norm over some dimensions."""
    del ord
    _reduce(trace, out, input, dim, _normed)


@rule("softmax", "log_softmax", "softmin", "cumsum", "cumprod", "logcumsumexp")
def along(
    trace: Trace, out: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any
) -> None:
    """The shape stays, but each value depends on the other units along the dimension."""
    trace.use(input)
    if dim is None:  # the default of torch's softmax
        dim = 0 if input.ndim in (0, 1, 3) else 1
    label = covering(trace.labels(input), dim % input.ndim)
    if label is not None:
        trace.mix(label.ids, label.dims.index(dim % input.ndim))
    trace.set(out, trace.labels(input))


keeps_zeros("normalize")


@rule("normalize")
def normalize(
    trace: Trace, out: Tensor, input: Tensor, p: float = 2.0, dim: int = 1, *_: Any, **__: Any
) -> None:
    """The input is divided by its norm along a dimension."""
    del p
    trace.use(input)
    label = covering(trace.labels(input), dim % input.ndim)
    if label is not None:
        _normed(trace, input, label, dim % input.ndim)
    trace.set(out, trace.labels(input))


Note = Callable[[Trace, Tensor, Label, int], None]
"""What a reduction of a tensor over a dimension notes about the units along it."""


def _mixed(trace: Trace, input: Tensor, label: Label, dim: int) -> None:
    del input
    trace.mix(label.ids, label.dims.index(dim))


def _summed(trace: Trace, input: Tensor, label: Label, dim: int) -> None:
    if len(label.dims) == 1 and trace.weights.vanishes(input):
        trace.reads(input, dim)
    else:
        _mixed(trace, input, label, dim)


def _normed(trace: Trace, input: Tensor, label: Label, dim: int) -> None:
    if len(label.dims) == 1 and trace.weights.vanishes(input):
        trace.norms(label.ids)
    else:
        _mixed(trace, input, label, dim)


def _reduce(
    trace: Trace,
    out: Any,
    input: Tensor,
    dim: Any,
    note: Note,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    if isinstance(dim, Tensor) or "other" in options:  # max(a, b) is elementwise
        other = options.get("other", dim)
        trace.set(out, broadcast(trace, [input, other], out))
        return
    trace.use(input)
    if dim is None or isinstance(dim, bool) or dim == ():
        dims = list(range(input.ndim))
    else:
        dims = sorted({d % input.ndim for d in ([dim] if isinstance(dim, int) else dim)})
    for tensor in tensors_in(out):
        _remove(trace, tensor, input, dims, note)


def _remove(trace: Trace, out: Tensor, input: Tensor, dims: Sequence[int], note: Note) -> None:
    labels = trace.labels(input)
    for dim in dims:
        label = covering(labels, dim)
        if label is not None:
            note(trace, input, label, dim)
        labels = summed_over(trace, labels, dim)
    position = list(range(input.ndim))
    if out.ndim < input.ndim:
        position = [d - sum(r < d for r in dims) for d in position]
    trace.set(out, renumbered(labels, position))
