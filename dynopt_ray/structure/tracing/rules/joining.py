"""Labels of results that combine several tensors: elementwise, in products and in sums."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import (
    Contraction,
    Label,
    Labels,
    along,
    covering,
    first_along,
    renumbered,
    spread,
)

Operand = tuple[Tensor, Sequence[int]]
"""A tensor and, for each of its dimensions, the corresponding dimension of the joint space."""


def broadcast(trace: Trace, tensors: Sequence[Tensor], out: Tensor) -> Labels:
    """Return the labels of an elementwise result, to whose shape the tensors broadcast."""
    operands = [(t, range(out.ndim - t.ndim, out.ndim)) for t in tensors]
    return join(trace, operands, out.shape)


def contract(
    trace: Trace,
    out: Tensor,
    operands: Sequence[Operand],
    out_dims: Sequence[int],
    bias: Tensor | None = None,
    *,
    counted: Sequence[Operand] | bool = True,
) -> None:
    """Trace a sum of products (`einsum`), summed over the joint dimensions not in `out_dims`.

    Args:
        trace: the trace.
        out: the result.
        operands: the factors.
        out_dims: for each dimension of the result, its dimension in the joint space.
        bias: a vector that is added to the result.
        counted: whether `torch.utils.flop_counter` counts the operation (products of matrices, not
            those of a matrix with a vector), or the factors in the order in which torch takes them.
    """
    joint: dict[int, int] = {}
    for tensor, dims in operands:
        for dim, size in zip(dims, tensor.shape, strict=True):
            joint[dim] = max(size, joint.get(dim, 1))
    sizes = [joint[d] for d in range(len(joint))]
    labels = join(trace, operands, sizes)
    summed = sorted(joint.keys() - set(out_dims))
    if counted:
        in_order = operands if counted is True else counted
        _count_pairs(trace, labels, in_order, sizes, out_dims)
    for dim in summed:
        before, labels = labels, summed_over(trace, labels, dim)
        if len(labels) < len(before):
            _note_reader(trace, operands, dim)
    if not all(trace.is_weight(tensor) for tensor, _ in operands):
        _note_makers(trace, operands, out_dims)  # a product of weights is a weight itself
    position = [list(out_dims).index(d) if d in out_dims else -1 for d in range(len(sizes))]
    trace.set(out, renumbered(labels, position))
    if len(operands) == 2 and summed:
        _note_consumer(trace, out, operands, out_dims, bias)


def _count_pairs(
    trace: Trace,
    labels: Labels,
    operands: Sequence[Operand],
    sizes: Sequence[int],
    out_dims: Sequence[int],
) -> None:
    """Count the products of one operand after the other, as torch computes them.

    A dimension that only one factor of a pair has is summed before the product. A pair without a
    dimension to sum over is multiplied elementwise, which does not count.
    """
    done = set(operands[0][1])
    for index, (_, dims) in enumerate(operands[1:], start=1):
        needed = set(out_dims).union(*(later for _, later in operands[index + 1 :]))
        shared = done & set(dims)
        if shared - needed:
            joint = shared | (needed & (done | set(dims)))
            cut = [_apart(label, set(label.dims) - joint) for label in labels]
            trace.count(
                tuple(label for label in cut if label.dims),
                [size if d in joint else 1 for d, size in enumerate(sizes)],
            )
        done |= set(dims)


def _note_consumer(
    trace: Trace,
    out: Tensor,
    operands: Sequence[Operand],
    out_dims: Sequence[int],
    bias: Tensor | None,
) -> None:
    """Note a consumer if exactly one of two dense factors is a parameter."""
    named = [trace.name(tensor) is not None for tensor, _ in operands]
    dense = all(tensor.layout is torch.strided for tensor, _ in operands)
    if dense and named.count(True) == 1:
        (_, read), (weight, own) = operands if named[1] else operands[::-1]
        dims = Contraction(tuple(read), tuple(own), tuple(out_dims))
        trace.consume(weight, out, bias=trace.name(bias), dims=dims)


def _note_reader(trace: Trace, operands: Sequence[Operand], dim: int) -> None:
    """Note the tensor that weights the units along a summed dimension; see `Weights.reader`."""
    tensors = [(t, list(dims).index(dim)) for t, dims in operands if dim in dims]
    trace.reads(*trace.weights.reader(tensors))


def _note_makers(trace: Trace, operands: Sequence[Operand], out_dims: Sequence[int]) -> None:
    """Note that a weight makes the units along output dimensions that no other operand has."""
    for weight, dims in operands:
        if len(operands) > 1 and trace.is_weight(weight):
            others = {d for tensor, their in operands if tensor is not weight for d in their}
            for own, dim in enumerate(dims):
                if dim in out_dims and dim not in others:
                    trace.makes(weight, own)


def join(trace: Trace, operands: Sequence[Operand], sizes: Sequence[int]) -> Labels:
    """Return the labels in the joint space of some tensors, after tying the units that meet.

    Units that meet data without units are pinned, because the size of data cannot change.
    """
    result: list[Label] = []
    for tensor, dims in operands:
        for label in trace.labels(tensor):
            repeated = [d for d in label.dims if tensor.shape[d] != sizes[dims[d]]]
            if len(repeated) == len(label.dims):
                trace.pin(label.ids, "one unit is broadcast over a whole dimension")
                continue
            label = _apart(label, repeated)
            (label,) = renumbered((label,), dims)
            plain = _plain_dims(trace, label, operands, sizes)
            if plain.issuperset(label.dims):
                trace.pin(
                    label.ids, "it is combined with data that has no units along this dimension"
                )
                continue
            for axis, dim in enumerate(label.dims):
                if dim in plain:  # rotary angles tie the coordinates of each head
                    trace.tie(label.ids, label.ids.take([0], axis=axis))
            label = _apart(label, plain)
            result = _merge(trace, result, label, sizes)
    return tuple(result)


def matched_apart_from(trace: Trace, operands: Sequence[Tensor], dim: int, reason: str) -> Labels:
    """Return the common labels of tensors that meet elementwise along all dimensions except one.

    Along `dim` the tensors may have any sizes; units there are pinned. Nothing is broadcast, so
    units that meet a dimension of another size are pinned, too.

    Args:
        trace: the trace.
        operands: tensors with the same number of dimensions.
        dim: the dimension along which they differ.
        reason: why units along `dim` cannot be resized.
    """
    ndim = operands[0].ndim
    dim %= max(ndim, 1)
    places = [[ndim + i if d == dim else d for d in range(ndim)] for i in range(len(operands))]
    sizes = [max(t.shape[d] for t in operands) for d in range(ndim)]
    sizes += [t.shape[dim] if ndim else 1 for t in operands]
    kept = []
    for label in join(trace, list(zip(operands, places, strict=True)), sizes):
        unequal = any(t.shape[d] != sizes[d] for t in operands for d in label.dims if d < ndim)
        if any(d >= ndim for d in label.dims):
            trace.pin(label.ids, reason)
        elif unequal:
            trace.pin(label.ids, "it is combined with data of another size along this dimension")
        else:
            kept.append(label)
    return tuple(kept)


def summed_over(trace: Trace, labels: Labels, dim: int) -> Labels:
    """Return the labels after a sum over `dim`.

    If a label covers `dim` and other dimensions (heads × coordinates), the coordinates along `dim`
    are tied, so whole heads remain as units along the others.
    """
    label = covering(labels, dim)
    if label is None:
        return labels
    trace.record.pass_through([label.ids], [])  # read, even if the result has the same units
    rest = tuple(other for other in labels if other is not label)
    left = first_along(label, dim)
    if left is not None:
        trace.tie(label.ids, label.ids.take([0], axis=label.dims.index(dim)))
    return rest if left is None else (*rest, left)


def _apart(label: Label, dims: Collection[int]) -> Label:
    """Return the label without some dimensions, along which its units do not differ."""
    kept = tuple(d for d in label.dims if d not in dims)
    return label if len(kept) == len(label.dims) else Label(kept, along(label, *kept))


def _merge(trace: Trace, result: list[Label], label: Label, sizes: Sequence[int]) -> list[Label]:
    """Return the labels with one more, after tying it to every label that it overlaps.

    It takes the place of the first of these: the order decides which units are kept if a view
    merges those of two labels into one dimension.
    """
    overlapping = [
        n for n, other in enumerate(result) if not set(other.dims).isdisjoint(label.dims)
    ]
    place = overlapping[0] if overlapping else len(result)
    for other in (result[n] for n in overlapping):
        if other.dims == label.dims:
            trace.tie(other.ids, label.ids)
            continue
        wide, narrow = (other, label) if len(other.dims) >= len(label.dims) else (label, other)
        if wide.dims[0] in narrow.dims or not set(narrow.dims) <= set(wide.dims):
            dims = sorted({*other.dims, *label.dims})
            extents = [sizes[d] for d in dims]
            ids = spread(wide, dims, extents)
            trace.tie(ids, spread(narrow, dims, extents))
            wide = Label(tuple(dims), ids)
        else:
            # One scale serves all heads (after a norm over each head); heads stay the units.
            trace.pin(narrow.ids, "it is shared by all heads")
        label = wide
    apart = [other for n, other in enumerate(result) if n not in overlapping]
    return [*apart[:place], label, *apart[place:]]


def _plain_dims(
    trace: Trace, label: Label, operands: Sequence[Operand], sizes: Sequence[int]
) -> set[int]:
    """Return the dimensions of a label that another operand has in full, but without units."""
    plain = set()
    for tensor, dims in operands:
        labels = trace.labels(tensor)
        for own, dim in enumerate(dims):
            full = tensor.shape[own] == sizes[dim] > 1
            if full and dim in label.dims and covering(labels, own) is None:
                plain.add(dim)
    return plain
