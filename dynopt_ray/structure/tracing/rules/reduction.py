"""Rules for sums, means, extremes, norms and distributions over dimensions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import rule, with_in_place
from dynopt_ray.structure.tracing.rules.joining import broadcast, summed_over
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import covering, renumbered


@rule(
    *("sum", "mean", "amax", "amin", "max", "min", "std", "var", "prod", "logsumexp", "nansum"),
    *("nanmean", "median", "nanmedian", "all", "any", "argmax", "argmin", "std_mean", "var_mean"),
    *("aminmax", "count_nonzero", "hash_tensor"),
)
def reduce(trace: Trace, out: Any, input: Tensor, dim: Any = None, *_: Any, **kwargs: Any) -> None:
    """Dimensions are reduced; the result depends on the number of units along them."""
    dim = kwargs.get("axis", dim)
    if isinstance(dim, Tensor) or "other" in kwargs:  # max(a, b) is elementwise
        other = kwargs.get("other", dim)
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
        _remove(trace, tensor, input, dims)
        if not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            _told_apart(trace, tensor, input, dims)


@rule("norm", "frobenius_norm", "matrix_norm")
def norm(
    trace: Trace, out: Tensor, input: Tensor, p: Any = "fro", dim: Any = None, *_: Any, **__: Any
) -> None:
    """The norm over some dimensions."""
    del p
    reduce(trace, out, input, dim)


@rule("vector_norm")
def vector_norm(
    trace: Trace, out: Tensor, input: Tensor, ord: Any = 2, dim: Any = None, *_: Any, **__: Any
) -> None:
    """The norm over some dimensions."""
    del ord
    reduce(trace, out, input, dim)


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


@rule("normalize")
def normalize(
    trace: Trace, out: Tensor, input: Tensor, p: float = 2.0, dim: int = 1, *_: Any, **__: Any
) -> None:
    """The input is divided by its norm along a dimension."""
    del p
    along(trace, out, input, dim)


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


def _remove(trace: Trace, out: Tensor, input: Tensor, dims: Sequence[int]) -> None:
    labels = trace.labels(input)
    for dim in dims:
        label = covering(labels, dim)
        if label is not None:
            trace.mix(label.ids, label.dims.index(dim))
        labels = summed_over(trace, labels, dim)
    position = list(range(input.ndim))
    if out.ndim < input.ndim:
        position = [d - sum(r < d for r in dims) for d in position]
    trace.set(out, renumbered(labels, position))
