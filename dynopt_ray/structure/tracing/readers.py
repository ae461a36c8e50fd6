"""Operations that are linear in a weight, presented as independent linear regressions.

An operation consists of G independent products, outputs_RO = inputs_RK @ coefficients_OK.T (plus a
bias). A row is one position of the result at which the weight is applied. `refit` solves such
regressions for new coefficients.

Shapes: G groups, R rows, K inputs, O outputs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dynopt_ray.structure.units import Contraction
from dynopt_ray.transfers import to_device


class Reader(Protocol):
    """One use of a weight, as G linear regressions.

    Attributes:
        num_rows: the number of all rows.
        num_inputs: K.
        made: for each dimension of `outputs` after the first, the dimension of the weight along
            which the same units lie, or None.
    """

    num_rows: int
    num_inputs: int
    made: tuple[int | None, ...]

    def inputs(self, rows: Tensor) -> Tensor:
        """Return the inputs of some rows, (G, R, K)."""

    def outputs(self, out: Tensor, rows: Tensor) -> Tensor:
        """Return the outputs of some rows, (R, …), whose other dimensions flatten to (G, O)."""

    def in_layout(self, slope_GOK: Tensor) -> Tensor:
        """Return coefficients in the weight's own layout."""


def as_products(weight: Tensor, reader: Reader, num_groups: int) -> Tensor:
    """Return a weight, or a tensor of its shape, as coefficients (G, O, K); undoes `in_layout`.

    Args:
        weight: the weight.
        reader: one use of it.
        num_groups: G.
    """
    numbers = torch.arange(weight.numel(), device=weight.device)
    numbers = numbers.reshape(num_groups, -1, reader.num_inputs)
    flat = torch.empty_like(weight.flatten())
    flat[reader.in_layout(numbers).flatten()] = weight.flatten()
    return flat.reshape(numbers.shape)


class SumOfProducts:
    """A linear layer, a matrix product or an `einsum`.

    Args:
        x: the input.
        weight: the weight.
        dims: the dimensions of both and of the result in the joint space.
    """

    def __init__(self, x: Tensor, weight: Tensor, dims: Contraction) -> None:
        inner = [d for d in dims.input if d in dims.weight and d not in dims.output]
        shared = [d for d in dims.input if d in dims.weight and d in dims.output]
        rows = [d for d in dims.input if d not in dims.weight]
        made = [d for d in dims.weight if d not in dims.input]
        place = {d: i for i, d in enumerate(dims.weight)}
        x = x.permute([dims.input.index(d) for d in [*shared, *rows, *inner]])
        x = x.expand(*(weight.shape[place[d]] for d in shared), *x.shape[len(shared) :])
        self.num_inputs = math.prod(weight.shape[place[d]] for d in inner)
        self._x_GRK = x.reshape(
            math.prod(weight.shape[place[d]] for d in shared), -1, self.num_inputs
        )
        self.num_rows = self._x_GRK.shape[1]
        self.made: tuple[int | None, ...] = tuple(place[d] for d in [*shared, *made])
        self._order = [dims.output.index(d) for d in [*rows, *shared, *made]]
        self._num_row_dims = len(rows)
        self._weight_order = [place[d] for d in [*shared, *made, *inner]]
        self._weight_shape = weight.shape

    def inputs(self, rows: Tensor) -> Tensor:
        """See `Reader`."""
        return self._x_GRK[:, to_device(rows, self._x_GRK.device)]

    def outputs(self, out: Tensor, rows: Tensor) -> Tensor:
        """See `Reader`."""
        out = out.permute(self._order)
        return out.reshape(self.num_rows, *out.shape[self._num_row_dims :])[
            to_device(rows, out.device)
        ]

    def in_layout(self, slope_GOK: Tensor) -> Tensor:
        """See `Reader`."""
        sizes = [self._weight_shape[d] for d in self._weight_order]
        back = sorted(range(len(sizes)), key=self._weight_order.__getitem__)
        return slope_GOK.reshape(sizes).permute(back)


class Convolution:
    """A convolution, or a transposed one.

    A transposed convolution is a convolution over its inputs, spread apart with zeros.

    Args:
        called: its arguments by name.
        out: its result.
        transposed: whether the convolution is transposed.
    """

    def __init__(self, called: Mapping[str, Any], out: Tensor, *, transposed: bool) -> None:
        weight = called["weight"]
        self._groups = called.get("groups", 1)
        self._transposed = transposed
        self._space = weight.ndim - 2
        self._shape = weight.shape
        self.made: tuple[int | None, ...] = (None, 1) if transposed else (0,)
        self.num_inputs = math.prod(weight.shape[1:])
        if transposed:
            self.num_inputs = weight.shape[0] // self._groups * math.prod(weight.shape[2:])
        spread = _spread if transposed else _padded
        self._patches = _patches(spread(called, out), called, weight.shape[2:], transposed)
        self.num_rows = math.prod(self._patches.shape[: 1 + self._space])

    def inputs(self, rows: Tensor) -> Tensor:
        """See `Reader`."""
        positions = self._patches.shape[: 1 + self._space]
        picked = self._patches[_unravelled(to_device(rows, self._patches.device), positions)]
        return picked.reshape(len(rows), self._groups, -1).transpose(0, 1)

    def outputs(self, out: Tensor, rows: Tensor) -> Tensor:
        """See `Reader`."""
        channels = out.movedim(-1 - self._space, -1)
        if channels.ndim == 1 + self._space:  # no batch
            channels = channels.unsqueeze(0)
        flat = channels[_unravelled(to_device(rows, out.device), channels.shape[:-1])]
        return flat.reshape(len(flat), self._groups, -1) if self._transposed else flat

    def in_layout(self, slope_GOK: Tensor) -> Tensor:
        """See `Reader`."""
        if not self._transposed:
            return slope_GOK.reshape(self._shape)
        kernel = self._shape[2:]
        inputs = self._shape[0] // self._groups
        slope = slope_GOK.reshape(*slope_GOK.shape[:2], inputs, *kernel)
        return slope.flip(*range(3, slope.ndim)).transpose(1, 2).reshape(self._shape)


def _unravelled(rows: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Return coordinates; unlike `torch.unravel_index`, this does not wait for the rows' device."""
    found = []
    for size in reversed(shape):
        found.append(rows % size)
        rows = rows // size
    return tuple(reversed(found))


def _patches(
    x: Tensor, called: Mapping[str, Any], kernel: Sequence[int], transposed: bool
) -> Tensor:
    """Return a view of all windows of the kernel's size: (batch, *positions, channels, *kernel)."""
    space = len(kernel)
    stride = (1,) * space if transposed else per_dim(called.get("stride", 1), space)
    dilation = per_dim(called.get("dilation", 1), space)
    for d in range(space):
        x = x.unfold(2 + d, (kernel[d] - 1) * dilation[d] + 1, stride[d])
    for d, step in enumerate(dilation):
        x = x[(slice(None),) * (x.ndim - space + d) + (slice(None, None, step),)]
    return x.movedim(1, 1 + space)


def _padded(called: Mapping[str, Any], out: Tensor) -> Tensor:
    """Return the input of a convolution, padded with zeros."""
    x, kernel = _batched(called), called["weight"].shape[2:]
    del out
    padding, dilation = called.get("padding", 0), per_dim(called.get("dilation", 1), len(kernel))
    amounts: list[int] = []
    for d in reversed(range(len(kernel))):  # `F.pad` expects the last dimension first
        if padding == "same":
            total = dilation[d] * (kernel[d] - 1)
            amounts += [total // 2, total - total // 2]
        else:
            amounts += [0 if padding == "valid" else per_dim(padding, len(kernel))[d]] * 2
    return F.pad(x, amounts)


def _spread(called: Mapping[str, Any], out: Tensor) -> Tensor:
    """Return the input of a transposed convolution, spread and padded with zeros."""
    x, kernel = _batched(called), called["weight"].shape[2:]
    space = len(kernel)
    stride = per_dim(called.get("stride", 1), space)
    dilation = per_dim(called.get("dilation", 1), space)
    padding = per_dim(called.get("padding", 0), space)
    extents = [(kernel[d] - 1) * dilation[d] for d in range(space)]
    sizes = [out.shape[out.ndim - space + d] + extents[d] for d in range(space)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    # Output 0 sees the input's first element at kernel position `padding`.
    starts = [extents[d] - padding[d] for d in range(space)]
    where: list[slice] = []
    take: list[slice] = []
    for d in range(space):
        skip = max(0, math.ceil(-starts[d] / stride[d]))
        first = starts[d] + skip * stride[d]
        count = min(x.shape[2 + d] - skip, max(0, math.ceil((sizes[d] - first) / stride[d])))
        where.append(slice(first, first + count * stride[d], stride[d]))
        take.append(slice(skip, skip + count))
    everything = (slice(None), slice(None))
    spread[(*everything, *where)] = x[(*everything, *take)]
    return spread


def _batched(called: Mapping[str, Any]) -> Tensor:
    x: Tensor = called["input"]
    return x if x.ndim == called["weight"].ndim else x.unsqueeze(0)


def per_dim(value: Any, num_dims: int) -> tuple[int, ...]:
    """Return one number per dimension of space, from a single number or a sequence."""
    return (
        (value,) * num_dims if isinstance(value, int) else tuple(value) * (num_dims // len(value))
    )
