"""The sizes passed to operations: some count units, others are attributes of modules."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dynopt_ray.structure.tracing.counts import Kept, Tracked, UnitCount
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, Labels, along, covering


def counted(trace: Trace, out: Tensor, sizes: Sequence[Any]) -> None:
    """Tie dimensions whose sizes were computed from a count of units to these units.

    A size `C` ties its dimension to the C units. Sizes `h, C // h` tie the two dimensions together
    to the C units. A dimension along which these units already lie, in any order, needs no tie.
    """
    if len(sizes) != out.ndim:
        return
    for dim, size in enumerate(sizes):
        label = covering(trace.labels(out), dim)
        if not isinstance(size, UnitCount):
            if label is not None and isinstance(size, Kept):
                _kept(trace, out, label, dim, size)
            elif isinstance(size, Kept):
                trace.record.sizes_of_data.add(size.place)
        elif label is not None and np.isin(label.ids, size.ids).all():
            continue
        elif size.divisor == 1:
            if label is None or len(label.dims) > 1:
                trace.match(out, dim, size.ids)
            else:
                trace.record.counted.append((label.ids, size.ids))
        elif label is not None:
            _tie_factors(trace, out, label, dim, size)


def fresh_along(trace: Trace, out: Tensor, sizes: Sequence[Any], dims: Collection[int]) -> Labels:
    """Return labels with new ids along those of the dimensions whose sizes follow a width.

    All coordinates along such a dimension are alike, so it may have any size.
    """
    if len(sizes) != out.ndim:
        return ()
    return tuple(
        Label((dim,), trace.record.fresh(out.shape[dim]))
        for dim, size in enumerate(sizes)
        if dim in dims and isinstance(size, Tracked)
    )


def listed(sizes: Sequence[Any]) -> Sequence[Any]:
    """Return sizes as a sequence, given one by one or as one list."""
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes


def _kept(trace: Trace, out: Tensor, label: Label, dim: int, size: Kept) -> None:
    """Note that a size that a module keeps follows the units along the dimension.

    For sizes `h, C // h` with a kept C, it follows the units of both dimensions.
    """
    axes = {dim}
    for other in sorted(label.dims, key=lambda d: abs(d - dim))[1:]:
        if len(axes) == 1 < size.divisor == out.shape[other]:
            axes.add(other)
    trace.counts(size, along(label, *axes))


def _tie_factors(trace: Trace, out: Tensor, label: Label, dim: int, size: UnitCount) -> None:
    """For sizes `h, C // h`, tie the two dimensions together to the C units."""
    for other in sorted(label.dims, key=lambda d: abs(d - dim))[1:]:
        if out.shape[other] * out.shape[dim] == size.ids.size:
            shape = [out.shape[d] if d in (other, dim) else 1 for d in label.dims]
            trace.tie(label.ids, size.ids.reshape(shape))
            return
