"""Rules for linear algebra, diagonals and Kronecker products."""

from typing import Any

import numpy as np
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import joins_zeros, keeps_zeros, rule
from dynopt_ray.structure.tracing.rules.reduction import reduce
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, covering

keeps_zeros("kron")
joins_zeros("block_diag")


@rule(
    *("cholesky", "cholesky_inverse", "cholesky_solve", "det", "eig", "eigh", "eigvals"),
    *("eigvalsh", "geqrf", "inv", "inverse", "logdet", "lstsq", "lu", "lu_factor", "lu_solve"),
    *("matrix_exp", "matrix_power", "matrix_rank", "nuclear_norm", "orgqr", "pinv", "pinverse"),
    *("qr", "slogdet", "solve", "solve_triangular", "svd", "svdvals", "triangular_solve"),
    *("cholesky_ex", "inv_ex", "lu_factor_ex", "solve_ex", "cond", "cov", "corrcoef"),
)
def whole_matrices(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> None:
    """Whole matrices enter each result, so their rows and columns are fixed; batches stay apart."""
    given = list(tensors_in((args, kwargs)))
    for tensor in given:
        trace.use(tensor)
        for label in trace.labels(tensor):
            if len(given) > 1 or any(d >= tensor.ndim - 2 for d in label.dims):
                trace.pin(label.ids, "whole matrices enter an operation of linear algebra")
    batch = trace.labels(given[0]) if len(given) == 1 else ()
    batch = tuple(lab for lab in batch if all(d < given[0].ndim - 2 for d in lab.dims))
    for tensor in tensors_in(out):
        same = tensor.shape == given[0].shape  # keeps the reason for which its units are fixed
        trace.set(tensor, trace.labels(given[0]) if same and len(given) == 1 else batch)


@rule("diagonal")
def diagonal(
    trace: Trace, out: Tensor, input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> None:
    """The entries with equal coordinates along two dimensions, which become the last one."""
    trace.use(input)
    gone = [dim1 % input.ndim, dim2 % input.ndim]
    labels = trace.labels(input)
    one, other = (covering(labels, d) for d in gone)
    kept: list[Label] = []
    for label in labels:
        if label is not one and label is not other:
            dims = tuple(d - sum(g < d for g in gone) for d in label.dims)
            kept.append(Label(dims, label.ids))
    if _pair(trace, one, other, offset) and one is not None:
        kept.append(Label((out.ndim - 1,), one.ids))
    trace.set(out, tuple(kept))


def _pair(trace: Trace, one: Label | None, other: Label | None, offset: int) -> bool:
    """Tie the units along the two dimensions of a square; pin them if they do not correspond."""
    given = [label for label in (one, other) if label is not None]
    pairs = {label.ids.shape for label in given}
    if one is not other and len(given) == 2 and len(pairs) == 1 and not offset:
        trace.tie(given[0].ids, given[1].ids)
        return True
    trace.pin(tuple(given), "a diagonal is taken along it")
    return False


@rule("diag_embed")
def diag_embed(
    trace: Trace, out: Tensor, input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1
) -> None:
    """The last dimension becomes the diagonal of a matrix."""
    trace.use(input)
    new = [dim1 % out.ndim, dim2 % out.ndim]
    places = [d for d in range(out.ndim) if d not in new]
    labels: list[Label] = []
    for label in trace.labels(input):
        if input.ndim - 1 not in label.dims:
            labels.append(Label(tuple(places[d] for d in label.dims), label.ids))
        elif len(label.dims) > 1 or offset:
            trace.pin(label.ids, "it is placed on a diagonal")
        else:
            labels += [Label((d,), label.ids) for d in new]
    trace.set(out, tuple(labels))


@rule("diag")
def diag(trace: Trace, out: Tensor, input: Tensor, diagonal: int = 0) -> None:
    """A vector becomes a diagonal, a matrix gives its diagonal."""
    if input.ndim == 1:
        diag_embed(trace, out, input, diagonal)
    else:
        _diagonal(trace, out, input, diagonal)


_diagonal = diagonal


@rule("trace")
def trace_of_matrix(trace: Trace, out: Tensor, input: Tensor) -> None:
    """The sum over the diagonal, which depends on the number of units along it."""
    with trace:
        entries = input.diagonal()
    reduce(trace, out, entries, 0)


@rule("block_diag")
def block_diag(trace: Trace, out: Tensor, *blocks: Any) -> None:
    """Matrices along a diagonal, with zeros around them."""
    tensors = list(tensors_in(blocks))
    labels: list[Label] = []
    for dim in (0, 1):
        along = []
        for tensor in tensors:
            trace.use(tensor)
            own = dim - 2 + tensor.ndim
            label = None if own < 0 else covering(trace.labels(tensor), own)
            size = 1 if own < 0 else tensor.shape[own]
            ids = trace.record.fresh(size) if label is None else label.ids
            if label is None:
                trace.pin(ids, "it lies along data without units in a block of a matrix")
            along.append(ids)
        labels.append(Label((dim,), np.concatenate(along)))
    trace.set(out, tuple(labels))


@rule("kron")
def kron(trace: Trace, out: Tensor, one: Tensor, other: Tensor) -> None:
    """Every entry of one tensor times every entry of the other, block by block.

    Where both have units along a dimension, the longer ones can be resized; the shorter ones are
    fixed, because a unit of the result belongs to a pair of them.
    """
    labels: list[Label] = []
    for tensor in (one, other):
        trace.use(tensor)
    for dim in range(out.ndim):
        here = [_along(trace, tensor, dim - out.ndim + tensor.ndim) for tensor in (one, other)]
        (outer, outer_size), (inner, inner_size) = here
        if outer is not None and inner is not None:
            shorter = inner if outer_size > inner_size else outer
            trace.pin(shorter, "it is multiplied with every unit of another tensor")
            outer = None if outer is shorter else outer
        if outer is not None:
            labels.append(Label((dim,), outer.repeat(inner_size)))
        elif inner is not None:
            labels.append(Label((dim,), np.tile(inner, outer_size)))
    trace.set(out, tuple(labels))


def _along(trace: Trace, tensor: Tensor, dim: int) -> tuple[Any, int]:
    """Return the ids along a dimension (None without) and its size; 1 if there is none."""
    return (None, 1) if dim < 0 else (trace.units(tensor, dim), tensor.shape[dim])
