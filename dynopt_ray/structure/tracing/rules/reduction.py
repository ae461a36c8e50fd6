"""Rules for sums, means, extremes, norms and distributions over dimensions."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import keeps_zeros, rule, with_in_place
from dynopt_ray.structure.tracing.rules.joining import broadcast, summed_over
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, covering, renumbered


@rule(
    *("mean", "amax", "amin", "max", "min", "std", "var", "prod", "logsumexp", "nanmean"),
    *("median", "nanmedian", "all", "any", "argmax", "argmin", "std_mean", "var_mean"),
    *("aminmax", "count_nonzero", "hash_tensor", "_is_all_true", "_is_any_true"),
)
def reduce(trace: Trace, out: Any, input: Tensor, dim: Any = None, *_: Any, **kwargs: Any) -> None:
    """Dimensions are reduced; the result depends on the number of units along them."""
    _reduce(trace, out, input, kwargs.get("axis", dim), _mixed, kwargs)


@rule("sum", "nansum")
def summed(trace: Trace, out: Any, input: Tensor, dim: Any = None, *_: Any, **kwargs: Any) -> None:
    """A sum reads units if the weights that scale them are zero for new units; see `Weights`."""
    _reduce(trace, out, input, kwargs.get("axis", dim), _summed, kwargs)


@rule("norm", "frobenius_norm", "matrix_norm")
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


@rule(
    *(
        "softmax",
        "log_softmax",
        "softmin",
        "logcumsumexp",
        "cummax",
        "cummin",
        torch.sparse.softmax,
    ),
    *with_in_place("cumsum", "cumprod"),
    torch.sparse.log_softmax,
)
def along(
    trace: Trace, out: Any, input: Tensor, dim: int | None = None, *_: Any, **__: Any
) -> None:
    """The shape stays, but each value depends on the other units along the dimension."""
    trace.use(input)
    if dim is None:  # the default of torch's softmax
        dim = 0 if input.ndim in (0, 1, 3) else 1
    label = covering(trace.labels(input), dim % input.ndim)
    if label is not None:
        trace.mix(label.ids, label.dims.index(dim % input.ndim))
    for tensor in tensors_in(out):
        trace.set(tensor, trace.labels(input))


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
        trace.inexact.norms(label.ids)
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
        for tensor in (input, other):
            trace.use(tensor)
        trace.set(out, broadcast(trace, [input, other], out))
        return
    trace.use(input)
    if dim is None or isinstance(dim, bool) or dim == ():
        dims = list(range(input.ndim))
    else:
        dims = sorted({d % input.ndim for d in ([dim] if isinstance(dim, int) else dim)})
    for tensor in tensors_in(out):
        _remove(trace, tensor, input, dims, note)
        if not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            _told_apart(trace, tensor, input, dims)


@rule("diff", "trapezoid", "trapz", "cumulative_trapezoid", "gradient", "cross", "renorm")
def neighbours(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> None:
    """Neighbouring coordinates are combined, or those that lie at certain places."""
    for tensor in tensors_in((args, kwargs)):
        trace.use(tensor)
        trace.pin(trace.labels(tensor), "neighbouring coordinates are combined")
    for tensor in tensors_in(out):
        trace.set(tensor, ())


@rule("_sparse_sum")
def sparse_sum(trace: Trace, out: Tensor, input: Tensor, dim: Any = None, **_: Any) -> None:
    """A sum over dimensions of a sparse tensor."""
    reduce(trace, out, input, dim)


def _told_apart(trace: Trace, out: Tensor, input: Tensor, dims: Sequence[int]) -> None:
    """Pin units whose positions are the values of `out` (argmax), once these are read."""
    if input.is_floating_point() or input.is_complex():
        for label in trace.labels(input):
            if set(dims).intersection(label.dims):
                trace.pin_if_read(out, label.ids, "its units are told apart by their position")


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
