"""The rule for padding, which adds coordinates or cuts some off."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dynopt_ray.structure.tracing.registry import rule, selects
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label

selects("pad", "constant_pad_nd")


@rule("pad", "constant_pad_nd")
def pad(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    pad: Sequence[int],
    mode: str = "constant",
    *_: Any,
    **__: Any,
) -> None:
    """Constant coordinates are added around the others, and their number is fixed."""
    trace.use(input)
    labels: list[Label] = []
    for label in trace.labels(input):
        ids = label.ids
        if mode != "constant" and any(_padding(pad, input.ndim, dim) for dim in label.dims):
            trace.pin(label.ids, "it is padded with copies of its own units")
            continue
        for axis, dim in enumerate(label.dims):
            before, after = _padding(pad, input.ndim, dim) or (0, 0)
            if before or after:
                ids = _padded(trace, ids, axis, before, after)
        labels.append(Label(label.dims, ids))
    trace.set(out, tuple(labels))


def _padding(pad: Sequence[int], ndim: int, dim: int) -> tuple[int, int] | None:
    """Return the number of coordinates added before and after in a dimension; None for none."""
    offset = 2 * (ndim - 1 - dim)
    before, after = (*pad[offset : offset + 2], 0, 0)[:2]
    return (before, after) if before or after else None


def _padded(trace: Trace, ids: Any, axis: int, before: int, after: int) -> Any:
    if axis > 0:
        # Padding before or after the coordinates of a head belongs to the head.
        amounts = [
            (max(before, 0), max(after, 0)) if a == axis else (0, 0) for a in range(ids.ndim)
        ]
        ids = np.pad(ids, amounts, mode="edge")
        before, after = min(before, 0), min(after, 0)
    parts = []
    for amount, reason in ((before, "before"), (0, ""), (after, "after")):
        if not reason:
            parts.append(ids)
        elif amount > 0:
            shape = list(ids.shape)
            shape[axis] = amount
            fresh = trace.record.fresh(int(np.prod(shape))).reshape(shape)
            trace.pin(fresh, "it is padding of a constant size")
            parts.append(fresh)
    joined = np.concatenate(parts, axis=axis)
    start, stop = max(-before, 0), joined.shape[axis] - max(-after, 0)
    return joined.take(np.arange(start, stop), axis=axis)
