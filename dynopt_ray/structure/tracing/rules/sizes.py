"""Sizes that an operation is asked for: some know which units they count, or who keeps them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dynopt_ray.structure.tracing.counts import Kept, UnitCount
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, along, covering


def counted(trace: Trace, out: Tensor, sizes: Sequence[Any]) -> None:
    """Tie dimensions whose sizes were computed from a number of units to those units.

    `C` ties a dimension to the C units, and `h, C // h` the two together. A dimension that holds
    these very units already, in whatever order, has their number anyway.
    """
    if len(sizes) != out.ndim:
        return
    for dim, size in enumerate(sizes):
        label = covering(trace.labels(out), dim)
        if not isinstance(size, UnitCount):
            if label is not None and isinstance(size, Kept):
                _kept(trace, out, label, dim, size)
        elif label is not None and np.isin(label.ids, size.ids).all():
            continue
        elif size.divisor == 1:
            if label is None or len(label.dims) > 1:
                trace.match(out, dim, size.ids)
            else:
                trace.record.counted.append((label.ids, size.ids))
        elif label is not None:
            _tie_factors(trace, out, label, dim, size)


def listed(sizes: Sequence[Any]) -> Sequence[Any]:
    """Sizes given one by one or as one list."""
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes


def _kept(trace: Trace, out: Tensor, label: Label, dim: int, size: Kept) -> None:
    """A size that a module keeps follows the units along the dimension.

    Of `h, C // h` with a kept C, that is all units of the two dimensions.
    """
    axes = {dim}
    for other in sorted(label.dims, key=lambda d: abs(d - dim))[1:]:
        if len(axes) == 1 < size.divisor == out.shape[other]:
            axes.add(other)
    trace.counts(size, along(label, *axes))


def _tie_factors(trace: Trace, out: Tensor, label: Label, dim: int, size: UnitCount) -> None:
    """Of `h, C // h`: the two dimensions together are the C units."""
    for other in sorted(label.dims, key=lambda d: abs(d - dim))[1:]:
        if out.shape[other] * out.shape[dim] == size.ids.size:
            shape = [out.shape[d] if d in (other, dim) else 1 for d in label.dims]
            trace.tie(label.ids, size.ids.reshape(shape))
            return
