"""The operations of a forward pass that use chosen weights: found, and handed over."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from dynopt_ray.structure.refit.side_by_side import Pausable
from dynopt_ray.structure.tracing import (
    TRANSPARENT,
    Convolution,
    Inputs,
    Reader,
    SumOfProducts,
    run,
    tensors_in,
)
from dynopt_ray.structure.units import Consumer

Use = tuple[str, int]
"""One use of a weight: the weight's name, and the number of the use within one pass, from 0."""


@dataclass(frozen=True, eq=False)
class Operation:
    """An operation that is linear in a weight, not carried out yet.

    Attributes:
        use: the use of the weight.
        consumer: how the weight is used.
        weight: the weight.
        func: the function of torch.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    use: Use
    consumer: Consumer
    weight: Tensor
    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @property
    def input(self) -> Tensor:
        """The tensor that the weight is applied to; its first dimension counts samples."""
        if self.consumer.dims is None:
            x: Tensor = self._called["input"]
            return x
        factors = list(tensors_in((self.args, self.kwargs)))[_PRODUCTS[self.func]][:2]
        return factors[0] if factors[1] is self.weight else factors[1]

    def result(self, instead: Mapping[int, Tensor] | None = None) -> Tensor:
        """Carry out the operation and return its result.

        Args:
            instead: `id` of an operand -> the tensor to use in its place.
        """
        args, kwargs = self.args, self.kwargs
        if instead:
            args, kwargs = tree_map_only(Tensor, lambda t: instead.get(id(t), t), (args, kwargs))
        out: Tensor = self.func(*args, **kwargs)
        return out

    def reader(self, out: Tensor) -> Reader:
        """Return the operation as linear regressions, given its result."""
        if self.consumer.dims is not None:
            return SumOfProducts(self.input, self.weight, self.consumer.dims)
        return Convolution(
            self._called, out, transposed="output_padding" in _CONVOLUTIONS[self.func]
        )

    @property
    def _called(self) -> dict[str, Any]:
        """The arguments of a convolution by name."""
        return {**dict(zip(_CONVOLUTIONS[self.func], self.args, strict=False)), **self.kwargs}


class OperationMode(TorchFunctionMode):
    """Passes the operations that use some weights to `carried_out`, which has to do them.

    Args:
        tensors: the tensors with which the network runs, by name.
        uses: the weights, with their uses in one pass.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], uses: Mapping[str, Sequence[Consumer]]
    ) -> None:
        super().__init__()
        self._uses = uses
        self._names = {id(tensors[name]): name for name in uses}
        self._all = {id(tensor) for tensor in tensors.values()}
        self._num_uses = sum(len(u) for u in uses.values())
        self._met: Counter[str] = Counter()

    def carried_out(self, operation: Operation) -> Tensor:
        """Carry out an operation and return its result."""
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        if func in TRANSPARENT:
            with self:
                return TRANSPARENT[func](*args, **kwargs)
        weight = self._weight(func, args, kwargs)
        if weight is None:
            return func(*args, **kwargs)
        name = self._names[id(weight)]
        number = self._met[name]
        if number == len(self._uses[name]):
            raise ValueError(
                f"{name!r} is used more often in this pass than the {number} times in the pass "
                "with which the network was traced. Trace it with inputs like these"
            )
        self._met[name] += 1
        consumer = self._uses[name][number]
        return self.carried_out(Operation((name, number), consumer, weight, func, args, kwargs))

    def _weight(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """Return the weight that the operation applies to an input, as `trace` notes it."""
        if func in _CONVOLUTIONS:
            factors = [dict(zip(_CONVOLUTIONS[func], args, strict=False), **kwargs)["weight"]]
        elif func in _PRODUCTS and not {"alpha", "beta"} & kwargs.keys():
            factors = list(tensors_in((args, kwargs)))[_PRODUCTS[func]]
            if all(id(factor) in self._all for factor in factors):
                return None  # a product of two parameters
        else:
            return None
        return next((factor for factor in factors if id(factor) in self._names), None)

    @property
    def met_all(self) -> bool:
        """Whether the pass has met all uses of all weights."""
        return self._met.total() == self._num_uses


class AllMet(Exception):  # noqa: N818
    """Raised when all weights have been observed, so the rest of the pass need not run."""


class PausingMode(OperationMode):
    """Runs one pass that can pause, in turns with others."""

    pausable: Pausable[Any]

    def run(self, model: nn.Module, batch: Inputs, pausable: Pausable[Any]) -> None:
        """Run a pass, as far as needed."""
        self.pausable = pausable
        try:
            with self:
                run(model, batch)
        except AllMet:
            pass

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, unless the pass has to end."""
        self.pausable.check()
        return super().__torch_function__(func, types, args, kwargs)


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
