"""Observing a forward pass: some rows of the inputs and outputs of chosen weights are kept.

Shapes are those of `regression`: G groups, R rows, K inputs, O outputs.
"""

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
    TRANSPARENT,
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
"""One use of a weight: the weight's name, and the number of the use within one pass, from 0."""


@dataclass(frozen=True, eq=False)
class ObservedInputs:
    """Some rows of the inputs of one use of a weight.

    Attributes:
        reader: how the weight reads its inputs.
        rows: the indices of these rows.
        inputs_GRK: the inputs.
    """

    reader: Reader
    rows: Tensor
    inputs_GRK: Tensor


@dataclass(frozen=True, eq=False)
class ObservedOutputs:
    """Some rows of the outputs of one use of a weight.

    Attributes:
        num_rows: the number of all rows.
        num_inputs: the number of inputs, K.
        rows: the indices of these rows.
        outputs: the outputs, (R, …).
    """

    num_rows: int
    num_inputs: int
    rows: Tensor
    outputs: Tensor


class _Reached(Exception):
    """Raised when all weights have been observed, so the rest of the pass need not run."""


class Observer(TorchFunctionMode):
    """Runs a network with other tensors and keeps some rows of some weights' inputs and outputs.

    Args:
        tensors: the tensors to run with, by name.
        uses: the weights to observe, with their uses in one pass.
        number: the number of the batch. Together with the weight's name, it determines which rows
            are kept.
        num_batches: the number of all batches. The fewer there are, the more rows of each are kept.
        like: the outputs of another network on the same batch; the same rows are kept.
        choose: (use, reader, number of samples) -> the rows to keep; replaces the rules above.
        to_the_end: whether the pass continues after all weights have been observed, which
            gradients need. `live` then has the complete outputs of the weights.
        outputs_only: whether only outputs are kept, and no inputs.

    Attributes:
        seen: use -> the inputs that were kept.
        given: use -> the outputs that were kept.
        live: use -> all of its output, with its gradient graph; only with `to_the_end`.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        uses: Mapping[str, Sequence[Consumer]],
        number: int,
        num_batches: int,
        like: Mapping[Use, ObservedOutputs] | None = None,
        choose: Callable[[Use, Reader, int], Tensor] | None = None,
        to_the_end: bool = False,
        outputs_only: bool = False,
    ) -> None:
        super().__init__()
        self.seen: dict[Use, ObservedInputs] = {}
        self.given: dict[Use, ObservedOutputs] = {}
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
        """Run a forward pass as far as needed; return its output, or None if it stopped early."""
        try:
            with self:
                return call(model, batch, self._tensors)
        except _Reached:
            return None
        finally:
            # If an interrupt in torch's code leaves this mode active, it must not observe anything.
            self._names.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation; keep rows if one of the weights is an operand."""
        kwargs = kwargs or {}
        if func in TRANSPARENT:
            with self:
                return TRANSPARENT[func](*args, **kwargs)
        out = func(*args, **kwargs)
        if func in _CONVOLUTIONS or func in _PRODUCTS:
            operands = list(tensors_in((args, kwargs)))
            weight = next((t for t in operands if id(t) in self._names), None)
            if weight is not None:
                self._keep(self._names[id(weight)], weight, func, args, kwargs, out)
                if self._to_the_end:
                    out = out.clone()  # in-place operations must not change the tensor in `live`
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
        self.given[use] = ObservedOutputs(reader.num_rows, reader.num_inputs, rows, outputs)
        if not self._outputs_only:
            self.seen[use] = ObservedInputs(reader, rows, reader.inputs(rows))
        if self._to_the_end:
            self.live[use] = out
        elif len(self.given) == self._num_uses:
            raise _Reached

    def _chosen(self, use: Use, reader: Reader, num_samples: int) -> Tensor:
        """Return the rows to keep: enough for the regression, drawn from all samples."""
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
# Operation -> the positions of its two factors among its tensor arguments.
_PRODUCTS: dict[Callable[..., Any], slice] = {
    **dict.fromkeys(
        (
            *(torch.nn.functional.linear, torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot),
            *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.dot),
            *(Tensor.__matmul__, Tensor.__rmatmul__, torch.einsum, torch.tensordot),
            *(torch.inner, Tensor.inner),
        ),
        slice(0, 2),
    ),
    **dict.fromkeys(
        (torch.addmm, torch.baddbmm, torch.addmv, Tensor.addmm, Tensor.baddbmm, Tensor.addmv),
        slice(1, 3),
    ),
}
