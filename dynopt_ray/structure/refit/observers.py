"""Running a network and keeping some of what certain weights read and give."""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dynopt_ray.structure.tracing import (
    OPENED,
    Convolution,
    Inputs,
    Reader,
    SumOfProducts,
    call,
    tensors_in,
)
from dynopt_ray.structure.units import Consumer

_ROWS_PER_SAMPLE = 16
ROWS_PER_INPUT = 32

Use = tuple[str, int]
"""A weight's name, and which of its uses in one pass."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Some rows of what one use of a weight read.

    Attributes:
        reader: how it reads.
        rows: which of all rows these are.
        inputs_GRK: what it read.
    """

    reader: Reader
    rows: Tensor
    inputs_GRK: Tensor


@dataclass(frozen=True, eq=False)
class Given:
    """The same rows of what it gave.

    Attributes:
        num_rows: rows in all.
        num_inputs: K of the regression.
        rows: which of the rows these are.
        outputs: what it gave, (R, …).
    """

    num_rows: int
    num_inputs: int
    rows: Tensor
    outputs: Tensor


class _Reached(Exception):
    """Everything wanted has been seen: the rest of the pass need not run."""


class Observer(TorchFunctionMode):
    """Runs a network with other tensors and keeps some rows of what some weights read and give.

    Args:
        tensors: the tensors to run with, by name.
        uses: the weights to observe, with their uses in one pass.
        number: of the batch; decides with the weight's name which rows are kept.
        num_batches: in all; the fewer, the more rows of each are kept.
        like: what another network gave on the same batch: the same rows are kept.
        choose: (use, reader, number of samples) -> the rows to keep, instead of these rules.
        to_the_end: whether the pass runs on when everything wanted has been seen, for whoever
            wants gradients; what the weights gave, whole, is then in `live`.
        outputs_only: whether nothing is kept of what they read.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        uses: Mapping[str, Sequence[Consumer]],
        number: int,
        num_batches: int,
        like: Mapping[Use, Given] | None = None,
        choose: Callable[[Use, Reader, int], Tensor] | None = None,
        to_the_end: bool = False,
        outputs_only: bool = False,
    ) -> None:
        super().__init__()
        self.seen: dict[Use, Seen] = {}
        self.given: dict[Use, Given] = {}
        self.live: dict[Use, Tensor] = {}
        self._to_the_end = to_the_end
        self._outputs_only = outputs_only
        self._tensors = tensors
        self._uses = uses
        self._names = {id(tensors[name]): name for name in uses}
        self._num_uses = sum(len(u) for u in uses.values())
        self._met: Counter[str] = Counter()
        self._number = number
        self._num_batches = num_batches
        self._like = like or {}
        self._choose = choose or self._chosen

    def run(self, model: nn.Module, batch: Inputs) -> Any:
        """One forward pass, as far as it is needed; what it gives, if it runs to the end."""
        try:
            with self:
                return call(model, batch, self._tensors)
        except _Reached:
            return None
        finally:
            # An interrupt within torch's own handling of modes may leave this one switched on.
            self._names.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation; keep rows if it reads with one of the weights."""
        kwargs = kwargs or {}
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        out = func(*args, **kwargs)
        if func in _CONVOLUTIONS or func in _PRODUCTS:
            operands = list(tensors_in((args, kwargs)))
            weight = next((t for t in operands if id(t) in self._names), None)
            if weight is not None:
                self._keep(self._names[id(weight)], weight, func, args, kwargs, out)
                if self._to_the_end:
                    out = out.clone()  # what is done in place must not reach what is kept
        return out

    def _keep(
        self,
        name: str,
        weight: Tensor,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: Tensor,
    ) -> None:
        use = (name, self._met[name])
        self._met[name] += 1
        consumer = self._uses[name][use[1]]
        if consumer.dims is None:
            names = _CONVOLUTIONS[func]
            called = dict(zip(names, args, strict=False)) | dict(kwargs)
            transposed = "output_padding" in names
            reader: Reader = Convolution(called, out, transposed=transposed)
            num_samples = len(called["input"])
        else:
            factors = list(tensors_in((args, kwargs)))[_PRODUCTS[func]][:2]
            x = factors[0] if factors[1] is weight else factors[1]
            reader = SumOfProducts(x, weight, consumer.dims)
            num_samples = len(x)
        rows = self._choose(use, reader, num_samples)
        outputs = reader.outputs(out, rows)
        self.given[use] = Given(reader.num_rows, reader.num_inputs, rows, outputs)
        if not self._outputs_only:
            self.seen[use] = Seen(reader, rows, reader.inputs(rows))
        if self._to_the_end:
            self.live[use] = out
        elif len(self.given) == self._num_uses:
            raise _Reached

    def _chosen(self, use: Use, reader: Reader, num_samples: int) -> Tensor:
        """Which rows to keep: enough for the regression, and of all samples."""
        other = self._like.get(use)
        if other is not None and other.num_rows == reader.num_rows:
            return other.rows
        wanted = max(
            _ROWS_PER_SAMPLE * num_samples,
            math.ceil(ROWS_PER_INPUT * reader.num_inputs / self._num_batches),
        )
        if reader.num_rows <= wanted:
            return torch.arange(reader.num_rows, device="cpu")
        seed = zlib.crc32(f"{use} {self._number}".encode())
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randint(reader.num_rows, (wanted,), generator=generator, device="cpu")


_FORWARD = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_BACKWARD = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CONVOLUTIONS: dict[Callable[..., Any], tuple[str, ...]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _FORWARD),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _BACKWARD
    ),
}
# Where the two factors stand among an operation's tensors.
_PRODUCTS: dict[Callable[..., Any], slice] = {
    **dict.fromkeys(
        (
            *(torch.nn.functional.linear, torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot),
            *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.dot),
            *(Tensor.__matmul__, Tensor.__rmatmul__, torch.einsum),
        ),
        slice(0, 2),
    ),
    **dict.fromkeys(
        (torch.addmm, torch.baddbmm, torch.addmv, Tensor.addmm, Tensor.baddbmm, Tensor.addmv),
        slice(1, 3),
    ),
}
