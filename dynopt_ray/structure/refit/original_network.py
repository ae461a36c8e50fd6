"""The original network in compensation: a pass that records what weights give."""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.structure.refit.operations import AllMet, Operation, PausingMode, Use
from dynopt_ray.structure.refit.side_by_side import NetworkPass, Turns
from dynopt_ray.structure.tracing import Reader
from dynopt_ray.structure.units import Consumer

_ROWS_PER_SAMPLE = 16
_ROWS_PER_INPUT = 32
_FEWEST_ROWS = 2**14
# Bytes of a consumer's input that all paused passes together may keep.
_MOST_KEPT_BYTES = 2**29


@dataclass(frozen=True, eq=False)
class RecordedOutputs:
    """Some rows of the outputs of one use of a weight in the original network.

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


class Records:
    """The recorded outputs of all batches that the cut network has not used yet.

    Args:
        uses: the weights, with their uses in one pass.
        num_batches: the number of batches.
        most_bytes: the size of outputs at which the original network waits.
    """

    def __init__(
        self, uses: Mapping[str, Sequence[Consumer]], num_batches: int, most_bytes: int
    ) -> None:
        self.num_batches = num_batches
        self._most_bytes = most_bytes
        self._uses = uses
        self._kept: dict[Use, dict[int, RecordedOutputs]] = defaultdict(dict)
        self._num_rows: Counter[Use] = Counter()
        # Use -> the last batch that it needs, as soon as this is known.
        self._last: dict[Use, int] = {}
        self._num_bytes = 0
        self._done: set[Use] = set()

    def full(self) -> bool:
        """Whether the passes through the original network should wait."""
        return self._num_bytes > self._most_bytes

    def wants(self, use: Use, number: int) -> bool:
        """Whether a use still needs rows of a batch: earlier batches do not have enough."""
        return use not in self._done and number <= self._last.get(use, number)

    def add(self, use: Use, number: int, recorded: RecordedOutputs) -> None:
        """Keep the outputs of a batch."""
        self._kept[use][number] = recorded
        self._num_rows[use] += len(recorded.rows)
        enough = max(_FEWEST_ROWS, _ROWS_PER_INPUT * recorded.num_inputs)
        if self._num_rows[use] >= enough / len(self._uses[use[0]]):
            self._last.setdefault(use, max(self._kept[use]))
        self._num_bytes += recorded.outputs.nbytes

    def get(self, use: Use, number: int) -> RecordedOutputs | None:
        """Return the outputs of a batch; None if they have not been recorded."""
        return self._kept[use].get(number)

    def finish(self, use: Use) -> None:
        """Give up the outputs of a use, which the cut network has passed."""
        self._done.add(use)
        self._num_bytes -= sum(one.outputs.nbytes for one in self._kept.pop(use, {}).values())


class RecordingMode(PausingMode):
    """Records outputs in the original network, and pauses while too many of them are kept.

    Args:
        tensors: the tensors of the network by name.
        uses: the weights, with their uses in one pass.
        number: the number of the batch.
        records: where the outputs are kept.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        uses: Mapping[str, Sequence[Consumer]],
        number: int,
        records: Records,
    ) -> None:
        super().__init__(tensors, uses)
        self._number = number
        self._records = records
        self._largest = 1

    def carried_out(self, operation: Operation) -> Tensor:
        """Carry out an operation and record some rows of its result."""
        out = operation.result()
        if self._records.wants(operation.use, self._number):
            self._record(operation, out)
            if self._records.full():
                self.pausable.pause(operation.use)
        if self.met_all:
            raise AllMet
        return out

    def _record(self, operation: Operation, out: Tensor) -> None:
        reader, x = operation.reader(out), operation.input
        # A paused pass keeps inputs like this one, and perhaps larger ones of earlier layers.
        self._largest = max(self._largest, x.nbytes)
        rows = self._rows(operation.use, reader, len(x))
        outputs = reader.outputs(out, rows)
        recorded = RecordedOutputs(reader.num_rows, reader.num_inputs, rows, outputs)
        self._records.add(operation.use, self._number, recorded)

    def _rows(self, use: Use, reader: Reader, num_samples: int) -> Tensor:
        """Return the rows to record: enough for the regression, drawn from all samples."""
        enough = _ROWS_PER_INPUT * reader.num_inputs
        num_batches = self._records.num_batches
        wanted = max(_ROWS_PER_SAMPLE * num_samples, math.ceil(enough / num_batches))
        most_batches = max(1, _MOST_KEPT_BYTES // self._largest)
        if most_batches < num_batches:  # so that fewer batches suffice
            wanted = max(wanted, math.ceil(max(_FEWEST_ROWS, enough) / most_batches))
        if reader.num_rows <= wanted:
            return torch.arange(reader.num_rows, device="cpu")
        seed = zlib.crc32(f"{use} {self._number}".encode())
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randint(reader.num_rows, (wanted,), generator=generator, device="cpu")


class OriginalNetwork:
    """The original network, which runs ahead of the cut network and records outputs.

    Args:
        tensors: its parameters and buffers by name.
        uses: the weights, with their uses in one pass.
        turns: runs its passes.
        most_bytes: the size of outputs at which it waits for the cut network.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        uses: Mapping[str, Sequence[Consumer]],
        turns: Turns,
        most_bytes: int,
    ) -> None:
        self._tensors = tensors
        self._uses = uses
        self._turns = turns
        self._records = Records(uses, turns.num_batches, most_bytes)
        self._passes: dict[int, NetworkPass[Use]] = {}

    def recorded(self, use: Use) -> Iterator[tuple[int, RecordedOutputs]]:
        """Yield the numbers of as many batches as a use needs, and their outputs there."""
        for number in range(self._turns.num_batches):
            if not self._records.wants(use, number):
                break
            if number not in self._passes:
                mode = RecordingMode(self._tensors, self._uses, number, self._records)
                self._passes[number] = self._turns.begin(self._turns.original, number, mode.run)
            one = self._passes[number]
            while self._records.get(use, number) is None and not one.ended:
                self._turns.resume(one)
            outputs = self._records.get(use, number)
            if outputs is not None:
                yield number, outputs

    def finish(self, use: Use) -> None:
        """Give up the outputs of a use, which the cut network has passed."""
        self._records.finish(use)
