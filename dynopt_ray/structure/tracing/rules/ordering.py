"""Rules for operations that reorder the coordinates of a dimension, or sort their values."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import rule
from dynopt_ray.structure.tracing.rules.sizes import listed
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import covering, renumbered


@rule("flip")
def flip(trace: Trace, out: Tensor, input: Tensor, *dims: Any, **kwargs: Any) -> None:
    """Dimensions are reversed."""
    reordered(trace, out, input, listed(kwargs.get("dims", dims)))


@rule("flipud", "msort", "__reversed__")
def along_first(trace: Trace, out: Tensor, input: Tensor) -> None:
    """The first dimension is reversed or sorted."""
    reordered(trace, out, input, [0])


@rule("fliplr")
def along_second(trace: Trace, out: Tensor, input: Tensor) -> None:
    """The second dimension is reversed."""
    reordered(trace, out, input, [1])


@rule("rot90")
def rotated(
    trace: Trace, out: Tensor, input: Tensor, k: int = 1, dims: tuple[int, int] = (0, 1)
) -> None:
    """Two dimensions are rotated by a multiple of a right angle."""
    del k
    reordered(trace, out, input, dims)


@rule("roll")
def roll(trace: Trace, out: Tensor, input: Tensor, shifts: Any, dims: Any = ()) -> None:
    """Dimensions are shifted cyclically, or the flattened tensor if there are no `dims`."""
    del shifts
    dims = [dims] if isinstance(dims, int) else dims
    reordered(trace, out, input, dims or range(input.ndim))


@rule("fftshift", "ifftshift")
def shifted(trace: Trace, out: Tensor, input: Tensor, dim: Any = None) -> None:
    """Dimensions are shifted by half their size."""
    dims = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    reordered(trace, out, input, dims)


@rule("topk", "kthvalue")
def topk(trace: Trace, out: Any, input: Tensor, k: int, dim: int = -1, *_: Any, **__: Any) -> None:
    """The largest values along a dimension, or the k-th one."""
    del k
    reordered(trace, out, input, [dim])


@rule("sort", "argsort", "mode")
def sort(trace: Trace, out: Any, input: Tensor, *args: Any, **kwargs: Any) -> None:
    """Values are sorted along a dimension, or the most frequent one is found."""
    numbers = [a for a in args if type(a) is not bool]  # `stable` may come before `dim`
    reordered(trace, out, input, [kwargs.get("dim", *numbers[:1] or [-1])])


@rule("quantile", "nanquantile")
def quantile(
    trace: Trace, out: Tensor, input: Tensor, q: Any, dim: int | None = None, *_: Any, **__: Any
) -> None:
    """Values at some ranks. The result has a dimension for several ranks, in front."""
    dims = range(input.ndim) if dim is None else [dim]
    several = [1] if isinstance(q, Tensor) and q.ndim else []
    reordered(trace, out, input, dims, num_new=len(several))


def reordered(trace: Trace, out: Any, input: Tensor, dims: Iterable[int], num_new: int = 0) -> None:
    """Pin units along dimensions whose coordinates are reordered.

    Args:
        trace: the trace.
        out: the result: a tensor with the dimensions of `input`, or one that lacks those in `dims`.
        input: the tensor whose coordinates are reordered.
        dims: these dimensions.
        num_new: the number of new dimensions in front.
    """
    trace.use(input)
    labels = trace.labels(input)
    gone = {d % max(input.ndim, 1) for d in dims}
    for dim in gone:
        label = covering(labels, dim)
        if label is not None:
            trace.pin(label.ids, "its units are put into another order")
            labels = tuple(other for other in labels if other is not label)
    for tensor in tensors_in(out):
        position = [d + num_new for d in range(input.ndim)]
        if tensor.ndim - num_new < input.ndim:
            position = [p - sum(g < d for g in gone) for d, p in enumerate(position)]
        trace.set(tensor, renumbered(labels, position))
