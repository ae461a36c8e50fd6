"""Observing a forward pass: some rows of the inputs of chosen weights are kept.

Shapes are those of `regression`: G groups, R rows, K inputs, O outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dynopt_ray.structure.refit.operations import AllMet, Operation, OperationMode, Use
from dynopt_ray.structure.tracing import Inputs, Reader, call
from dynopt_ray.structure.units import Consumer


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


class Observer(OperationMode):
    """Runs a network with other tensors and keeps some rows of some weights' inputs.

    Args:
        tensors: the tensors to run with, by name.
        uses: the weights to observe, with their uses in one pass.
        choose: (use, reader, number of samples) -> the rows to keep.
        to_the_end: whether the pass continues after all weights have been observed, which
            gradients need. `live` then has the complete outputs of the weights.

    Attributes:
        seen: use -> the inputs that were kept.
        live: use -> all of its output, with its gradient graph; only with `to_the_end`.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        uses: Mapping[str, Sequence[Consumer]],
        choose: Callable[[Use, Reader, int], Tensor],
        to_the_end: bool = False,
    ) -> None:
        super().__init__(tensors, uses)
        self.seen: dict[Use, ObservedInputs] = {}
        self.live: dict[Use, Tensor] = {}
        self._tensors = tensors
        self._choose = choose
        self._to_the_end = to_the_end

    def run(self, model: nn.Module, batch: Inputs) -> Any:
        """Run a forward pass as far as needed; return its output, or None if it stopped early."""
        try:
            with self:
                return call(model, batch, self._tensors)
        except AllMet:
            return None
        finally:
            # If an interrupt in torch's code leaves this mode active, it must not observe anything.
            self._names.clear()

    def carried_out(self, operation: Operation) -> Tensor:
        """Carry out an operation and keep some rows of its input."""
        out, use = operation.result(), operation.use
        reader = operation.reader(out)
        rows = self._choose(use, reader, len(operation.input))
        self.seen[use] = ObservedInputs(reader, rows, reader.inputs(rows))
        if self._to_the_end:
            self.live[use] = out
            return out.clone()  # in-place operations must not change the tensor in `live`
        if self.met_all:
            raise AllMet
        return out
