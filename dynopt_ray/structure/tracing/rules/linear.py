"""Rules for linear layers, embeddings and matrix products."""

from collections import Counter
from typing import Any

from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import rule
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
    trace: Trace,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *_: Any,
    **__: Any,
) -> None:
    """Row `input` of a table. There is one row per index, so only columns can be resized."""
    del padding_idx
    trace.use(weight, "in", "out")
    trace.makes(weight, 1)
    rows, columns = trace.units(weight, 0), trace.units(weight, 1)
    if rows is not None:
        trace.pin(rows, "it has one row for each index that the data may hold")
    made: Labels = ()
    if columns is not None:
        trace.link("embedding_dim", columns, owner=weight)
        if max_norm is not None:
            trace.mix(columns)
        made = (Label((out.ndim - 1,), columns),)
    trace.set(out, (*trace.labels(input), *made))


@rule("matmul", "__matmul__", "mm", "bmm", "mv", "dot", "vdot")
def matmul(trace: Trace, out: Tensor, one: Tensor, other: Tensor) -> None:
    """A product of two tensors, batched over their leading dimensions."""
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
    contract(trace, out, operands, out_dims)


@rule("__rmatmul__")
def reversed_matmul(trace: Trace, out: Tensor, one: Tensor, other: Tensor) -> None:
    """`other @ one`."""
    matmul(trace, out, other, one)


@rule("addmm", "baddbmm", "addbmm", "addmv")
def add_matmul(trace: Trace, out: Tensor, *args: Tensor, **kwargs: Any) -> None:
    """`input + one @ other`. The names of the arguments differ between these operations."""
    input, one, other = list(tensors_in((args, kwargs)))[:3]
    matmul(trace, out, one, other)
    if {"alpha", "beta"} & kwargs.keys():
        trace.forget_consumer(out)  # the product is scaled
    trace.use(input)
    trace.set(out, broadcast(trace, [out, input], out))


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
