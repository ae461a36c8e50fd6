"""Rules for linear layers, embeddings and matrix products."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import rule, with_in_place
from dynopt_ray.structure.tracing.rules.joining import broadcast, contract
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, Labels


@rule("linear")
def linear(
    trace: Trace, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> None:
    """`input @ weight.T + bias`. Dimension 1 of the weight reads units; dimension 0 makes units."""
    trace.use(weight, "out", "in")
    trace.use(bias, "out")
    rows = list(range(input.ndim - 1))
    inner, made = len(rows), len(rows) + 1
    operands = [(input, [*rows, inner]), (weight, [made, inner])]
    contract(trace, out, operands, [*rows, made], bias)
    read, units = trace.units(weight, 1), trace.units(out, -1)
    if read is not None:
        trace.link("in_features", read, owner=weight)
    if units is not None:
        trace.link("out_features", units, owner=weight)
    if bias is not None:
        trace.match(bias, 0, units)


@rule("embedding")
def embedding(
    trace: Trace, out: Tensor, input: Tensor, weight: Tensor, *args: Any, **how: Any
) -> None:
    """Row `input` of a table. There is one row per index, so only columns can be resized."""
    if input.is_floating_point():  # `torch.embedding` takes the table first
        input, weight = weight, input
    max_norm = how.get("max_norm", args[1] if len(args) > 1 else None)
    _table(trace, out, input, weight, limited=type(max_norm) is not bool and max_norm is not None)


@rule("embedding_bag")
def embedding_bag(
    trace: Trace, out: Any, input: Tensor, weight: Tensor, *args: Any, **how: Any
) -> None:
    """The sum, mean or maximum of some rows of a table for each bag of indices."""
    if input.is_floating_point():  # `torch.embedding_bag` takes the table first
        input, weight = weight, input
    for weights in tensors_in((args, how)):
        trace.use(weights)
        trace.pin(trace.labels(weights), "it weights the entries of a bag")
    max_norm = how.get("max_norm", args[1] if len(args) > 1 else None)
    trace.pin(trace.labels(input), "it indexes a table")
    result, *others = tensors_in(out)
    limited = type(max_norm) is not bool and max_norm is not None
    _table(trace, result, result, weight, limited=limited)
    for other in others:
        trace.set(other, ())


def _table(trace: Trace, out: Tensor, index: Tensor, weight: Tensor, *, limited: bool) -> None:
    """Trace rows of a table. With `limited`, rows are scaled down to a norm over their columns."""
    trace.use(weight, "in", "out")
    trace.makes(weight, 1)
    rows, columns = trace.units(weight, 0), trace.units(weight, 1)
    if rows is not None:
        trace.pin(rows, "it has one row for each index that the data may hold")
    made: Labels = ()
    if columns is not None:
        trace.link("embedding_dim", columns, owner=weight)
        if limited:
            trace.mix(columns)
        made = (Label((out.ndim - 1,), columns),)
    before = trace.labels(index) if index is not out else ()
    trace.set(out, (*before, *made))


@rule("matmul", "__matmul__", "mm", "bmm", "mv", "dot", "vdot")
def matmul(trace: Trace, out: Tensor, one: Tensor, other: Tensor) -> None:
    """A product of two tensors, batched over their leading dimensions."""
    _matmul(trace, out, one, other, counted=other.ndim > 1)


def _matmul(trace: Trace, out: Tensor, one: Tensor, other: Tensor, *, counted: bool) -> None:
    trace.use(one)
    trace.use(other)
    num_batch = max(one.ndim, other.ndim, 2) - 2
    row, inner, column = num_batch, num_batch + 1, num_batch + 2
    batch = list(range(num_batch))

    def place(tensor: Tensor, matrix: list[int], vector: list[int]) -> list[int]:
        return vector if tensor.ndim == 1 else [*batch[num_batch + 2 - tensor.ndim :], *matrix]

    one_dims = place(one, [row, inner], [inner])
    other_dims = place(other, [inner, column], [inner])
    used = sorted({*batch, *one_dims, *other_dims})
    dense = {dim: index for index, dim in enumerate(used)}
    out_dims = [dense[d] for d in used if d != inner]
    operands = [(one, [dense[d] for d in one_dims]), (other, [dense[d] for d in other_dims])]
    contract(trace, out, operands, out_dims, counted=counted)


@rule("__rmatmul__")
def reversed_matmul(trace: Trace, out: Tensor, one: Tensor, other: Tensor) -> None:
    """`other @ one`."""
    matmul(trace, out, other, one)


@rule(torch.sparse.mm, "smm", "hspmm")
def sparse_matmul(trace: Trace, out: Tensor, one: Tensor, other: Tensor, *_: str) -> None:
    """A product with a sparse matrix. `reduce` may take a mean or extreme in place of the sum."""
    _matmul(trace, out, one, other, counted=False)
    trace.forget_consumer(out)


@rule("addmm", "baddbmm")
def add_matmul(trace: Trace, out: Tensor, *args: Tensor, **kwargs: Any) -> None:
    """`input + one @ other`. The names of the arguments differ between these operations."""
    _added(trace, out, lambda at, one, other: matmul(trace, at, one, other), args, kwargs)


@rule("addmm_", "baddbmm_", *with_in_place("addmv"), torch.sparse.addmm)
def add_uncounted(trace: Trace, out: Tensor, *args: Tensor, **kwargs: Any) -> None:
    """The same in place, with a vector or a sparse matrix: torch's counter does not count these."""

    def product(at: Tensor, one: Tensor, other: Tensor) -> None:
        _matmul(trace, at, one, other, counted=False)

    _added(trace, out, product, args, kwargs)


@rule(*with_in_place("addbmm"))
def add_batches(trace: Trace, out: Tensor, *args: Tensor, **kwargs: Any) -> None:
    """`input` plus the sum of the products of all matrices of a batch."""

    def product(at: Tensor, one: Tensor, other: Tensor) -> None:
        for tensor in (one, other):
            trace.use(tensor)
        contract(trace, at, [(one, [0, 1, 2]), (other, [0, 2, 3])], [1, 3], counted=False)
        trace.forget_consumer(at)

    _added(trace, out, product, args, kwargs)


@rule(*with_in_place("addr"))
def add_outer(trace: Trace, out: Tensor, *args: Tensor, **kwargs: Any) -> None:
    """`input` plus the products of all entries of two vectors."""
    _added(trace, out, lambda at, one, other: outer(trace, at, one, other), args, kwargs)


def _added(
    trace: Trace,
    out: Tensor,
    product: Callable[[Tensor, Tensor, Tensor], None],
    args: Any,
    how: Any,
) -> None:
    """Trace `input` plus a product of two tensors, where `input` may be `out` itself."""
    input, one, other = list(tensors_in((args, how)))[:3]
    at = torch.empty_like(out) if input is out else out
    product(at, one, other)
    if {"alpha", "beta"} & how.keys() or at is not out:
        trace.forget_consumer(at)  # the product is scaled
    trace.use(input)
    trace.set(out, broadcast(trace, [at, input], out))


@rule("_grouped_mm")
def grouped_matmul(
    trace: Trace, out: Tensor, one: Tensor, other: Tensor, *_: Any, **__: Any
) -> None:
    """Each row is multiplied by the matrix of its expert. The number of experts is fixed."""
    if one.ndim == 2 and other.ndim == 3:
        experts = trace.units(other, 0)
        if experts is not None:
            trace.pin(experts, "it has one matrix for each expert")
        with trace:
            matrix = other[0]
        matmul(trace, out, one, matrix)
    else:
        for tensor in (one, other):
            trace.pin(trace.labels(tensor), "it takes part in several products of different sizes")


@rule("tensordot")
def tensordot(
    trace: Trace, out: Tensor, one: Tensor, other: Tensor, dims: Any = 2, *_: Any, **__: Any
) -> None:
    """A sum over pairs of dimensions: the last ones with the first ones, or those given."""
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        dims = [list(range(one.ndim - dims, one.ndim)), list(range(dims))]
    ours, theirs = ([d] if isinstance(d, int) else list(d) for d in dims)
    ours, theirs = [d % one.ndim for d in ours], [d % other.ndim for d in theirs]
    pairs = dict(zip(theirs, ours, strict=True))
    new = iter(range(one.ndim, one.ndim + other.ndim))
    placed = [pairs[d] if d in pairs else next(new) for d in range(other.ndim)]
    for tensor in (one, other):
        trace.use(tensor)
    kept = [d for d in range(one.ndim) if d not in ours]
    kept += [d for own, d in enumerate(placed) if own not in pairs]
    contract(trace, out, [(one, list(range(one.ndim))), (other, placed)], kept)
    if not pairs:  # torch still multiplies matrices, with an inner size of 1
        trace.count(trace.labels(out), out.shape)


@rule("inner")
def inner(trace: Trace, out: Tensor, one: Tensor, other: Tensor) -> None:
    """Sums over the last dimensions of two tensors."""
    if one.ndim and other.ndim:
        tensordot(trace, out, one, other, [[-1], [-1]])
    else:
        trace.set(out, broadcast(trace, [one, other], out))


@rule("outer", "ger")
def outer(trace: Trace, out: Tensor, one: Tensor, other: Tensor) -> None:
    """The products of all entries of two vectors."""
    for tensor in (one, other):
        trace.use(tensor)
    contract(trace, out, [(one, [0]), (other, [1])], [0, 1])


@rule("vecdot")
def vecdot(trace: Trace, out: Tensor, one: Tensor, other: Tensor, *, dim: int = -1) -> None:
    """Sums of products along one dimension."""
    for tensor in (one, other):
        trace.use(tensor)
    ndim = max(one.ndim, other.ndim)
    operands = [(t, list(range(ndim - t.ndim, ndim))) for t in (one, other)]
    summed = dim % ndim
    contract(trace, out, operands, [d for d in range(ndim) if d != summed], counted=False)
    trace.forget_consumer(out)


@rule("bilinear")
def bilinear(
    trace: Trace,
    out: Tensor,
    one: Tensor,
    other: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> None:
    """`one @ weight[o] @ other` for each output. The weight reads the units of both inputs."""
    trace.use(weight, "out", "in", "in")
    trace.use(bias, "out")
    rows = list(range(one.ndim - 1))
    left, right, made = (len(rows) + i for i in range(3))
    operands = [(one, [*rows, left]), (weight, [made, left, right]), (other, [*rows, right])]
    contract(trace, out, operands, [*rows, made], counted=False)
    units = trace.units(out, -1)
    for attribute, ids in (
        ("in1_features", trace.units(weight, 1)),
        ("in2_features", trace.units(weight, 2)),
        ("out_features", units),
    ):
        if ids is not None:
            trace.link(attribute, ids, owner=weight)
    if bias is not None:
        trace.match(bias, 0, units)


@rule("chain_matmul", "multi_dot")
def chain(trace: Trace, out: Tensor, *matrices: Any, **_: Any) -> None:
    """A product of several matrices, counted from the first or the last one on."""
    tensors = list(tensors_in(matrices))
    places = [[i, i + 1] for i in range(len(tensors))]
    if tensors[0].ndim == 1:
        places[0] = [1]
    if tensors[-1].ndim == 1:
        places[-1] = [len(tensors) - 1]
    ends = [places[0][0]] if tensors[0].ndim > 1 else []
    ends += [places[-1][-1]] if tensors[-1].ndim > 1 else []
    used = sorted({d for dims in places for d in dims})
    dense = {d: i for i, d in enumerate(used)}
    for tensor in tensors:
        trace.use(tensor)
    operands = [(t, [dense[d] for d in dims]) for t, dims in zip(tensors, places, strict=True)]
    backwards = [t.mT if t.ndim > 1 else t for t in tensors[::-1]]
    order = 1 if _num_products(tensors) <= _num_products(backwards) else -1
    contract(trace, out, operands, [dense[d] for d in ends], counted=operands[::order])
    trace.forget_consumer(out)


def _num_products(matrices: Sequence[Tensor]) -> int:
    """Return the number of multiplications from the first matrix to the last."""
    rows = matrices[0].shape[0] if matrices[0].ndim > 1 else 1
    return rows * sum(m.shape[0] * m.shape[-1] for m in matrices[1:] if m.ndim > 1)


@rule("einsum")
def einsum(trace: Trace, out: Tensor, equation: str, *operands: Any) -> None:
    """Sums of products in Einstein notation."""
    tensors = list(operands[0]) if isinstance(operands[0], tuple | list) else list(operands)
    for tensor in tensors:
        trace.use(tensor)
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    num_dots = max(t.ndim - len(s.replace("...", "")) for t, s in zip(tensors, terms, strict=True))
    dots = [f"dot{i}" for i in range(num_dots)]

    def letters(term: str, ndim: int) -> list[str]:
        before, found, after = term.partition("...")
        missing = ndim - len(before) - len(after)
        return [*before, *(dots[num_dots - missing :] if found else []), *after]

    named = [letters(s, t.ndim) for s, t in zip(terms, tensors, strict=True)]
    if not arrow:
        counts = Counter("".join(terms).replace(".", ""))
        right = "..." * bool(num_dots) + "".join(sorted(c for c, n in counts.items() if n == 1))
    place = {name: i for i, name in enumerate(dict.fromkeys(n for names in named for n in names))}
    contract(
        trace,
        out,
        [(t, [place[n] for n in names]) for t, names in zip(tensors, named, strict=True)],
        [place[n] for n in letters(right, out.ndim)],
    )
