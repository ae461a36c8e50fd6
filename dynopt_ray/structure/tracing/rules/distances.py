"""Rules for distances and similarities between vectors, traced as equivalent simple operations."""

from typing import Any

from torch import Tensor

from dynopt_ray.structure.tracing.registry import rule
from dynopt_ray.structure.tracing.tracer import Trace


@rule("cdist")
def cdist(trace: Trace, out: Tensor, x1: Tensor, x2: Tensor, *_: Any, **__: Any) -> None:
    """The distance of each row of one matrix to each row of another."""
    with trace:
        result = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).norm(dim=-1)
    trace.set(out, trace.labels(result))


@rule("pdist")
def pdist(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """The distances between all pairs of rows, in one vector."""
    trace.use(input)
    for label in trace.labels(input):
        if 0 in label.dims:
            trace.pin(label.ids, "distances between all pairs along it form one vector")
        else:
            trace.mix(label.ids)
    trace.set(out, ())


@rule("pairwise_distance")
def pairwise_distance(
    trace: Trace,
    out: Tensor,
    x1: Tensor,
    x2: Tensor,
    p: float = 2.0,
    eps: float = 1e-6,
    keepdim: bool = False,
) -> None:
    """The distance of corresponding rows of two matrices."""
    del p, eps
    with trace:
        result = (x1 - x2).norm(dim=-1, keepdim=keepdim)
    trace.set(out, trace.labels(result))


@rule("cosine_similarity")
def cosine_similarity(
    trace: Trace, out: Tensor, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8
) -> None:
    """The cosine of the angle between vectors along a dimension."""
    del eps
    with trace:
        one, other = (x / x.norm(dim=dim, keepdim=True) for x in (x1, x2))
        result = (one * other).sum(dim)
    trace.set(out, trace.labels(result))


@rule("dist")
def dist(trace: Trace, out: Tensor, input: Tensor, other: Tensor, *_: Any, **__: Any) -> None:
    """The norm of the difference of two tensors."""
    with trace:
        result = (input - other).norm()
    trace.set(out, trace.labels(result))
