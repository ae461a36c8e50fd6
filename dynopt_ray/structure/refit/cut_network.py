"""The cut network in compensation: a pass that waits at each weight until it is refitted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dynopt_ray.structure.refit.before_and_after import BeforeAndAfter
from dynopt_ray.structure.refit.correction import Correction, ResidualRows, residual, sink_of
from dynopt_ray.structure.refit.operations import AllMet, Operation, PausingMode, Use
from dynopt_ray.structure.refit.original_network import RecordedOutputs
from dynopt_ray.structure.refit.side_by_side import Turns
from dynopt_ray.structure.units import Consumer


class CutNetwork:
    """The cut network while its weights are refitted.

    Args:
        cut: the network before and after the change.
        consumers: the uses of each weight, in forward order.
        names: the weights to refit, in forward order.
        turns: runs its passes.

    Attributes:
        uses: the weights to refit, with their uses.
        corrections: weight -> its correction.
        axes: see `BeforeAndAfter`.
        tensors: its parameters and buffers by name; refitted ones change in place.
        version: the version of the network that passes run.
    """

    def __init__(
        self,
        cut: BeforeAndAfter,
        consumers: Mapping[str, Sequence[Consumer]],
        names: Sequence[str],
        turns: Turns,
    ) -> None:
        self.uses = {name: consumers[name] for name in names}
        self.axes = cut.axes
        self._changed: set[str] = set()
        self.corrections: dict[str, Correction] = {}
        for name in names:
            sink = sink_of(name, consumers)
            start = {n: cut.new[n] for n in (name, sink) if n is not None}
            adds = sink == consumers[name][0].bias
            self.corrections[name] = Correction(name, sink, adds, cut.masks.get(name), start)
        # The others may be the network's own.
        changing = {n for one in self.corrections.values() for n in one.start}
        self.tensors = {n: t.detach().clone() if n in changing else t for n, t in cut.new.items()}
        added = {change.group.name: change.added for change in cut.changes}
        self.version = turns.version(self.tensors, cut.attributes, added)

    def refit(self, name: str) -> None:
        """Give a weight and its bias or mean the values that fit the rows found so far."""
        for changed, value in self.corrections[name].values().items():
            self.tensors[changed].copy_(value)
        self.version.accept_buffers()
        self._changed.add(name)

    def before_refit(self, name: str) -> dict[int, Tensor]:
        """Return `id` -> earlier values of a weight and its sink, if they have been refitted."""
        if name not in self._changed:
            return {}
        start = self.corrections[name].start
        return {id(self.tensors[changed]): value for changed, value in start.items()}

    def refitted(self) -> dict[str, Tensor]:
        """Return the weights, biases and means that have been refitted, by name."""
        fitted = [one for one in self.corrections.values() if one.has_rows]
        names = [name for one in fitted for name in (one.name, one.sink) if name is not None]
        return {name: self.tensors[name] for name in names}


@dataclass(frozen=True, eq=False)
class Arrival:
    """A pass that has arrived at a use of a weight.

    Attributes:
        use: the use.
        rows: the rows that were asked for. None if none were, or if they do not correspond to those
            of the original network because units were removed along them.
    """

    use: Use
    rows: ResidualRows | None = None


class WaitingMode(PausingMode):
    """Waits at each use of a weight until it may pass.

    Args:
        network: the cut network.
        num_passed: weight -> the number of its uses that the pass may pass.

    Attributes:
        asked: a use, and the outputs of the original network there. When the pass arrives at the
            use, it compares its own.
    """

    def __init__(self, network: CutNetwork, num_passed: Mapping[str, int]) -> None:
        super().__init__(network.tensors, network.uses)
        self.asked: tuple[Use, RecordedOutputs] | None = None
        self._network = network
        self._num_passed = num_passed

    def carried_out(self, operation: Operation) -> Tensor:
        """Wait until the operation may be carried out, and do it."""
        name, number = operation.use
        while self._num_passed[name] <= number:
            self.pausable.pause(Arrival(operation.use, self._rows(operation)))
        if self.met_all:
            raise AllMet
        return operation.result()

    def _rows(self, operation: Operation) -> ResidualRows | None:
        if self.asked is None or self.asked[0] != operation.use:
            return None
        name, recorded = operation.use[0], self.asked[1]
        out = operation.result(self._network.before_refit(name))
        reader = operation.reader(out)
        if reader.num_rows != recorded.num_rows:
            return None
        inputs_GRK = reader.inputs(recorded.rows)
        given = reader.outputs(out, recorded.rows)
        axes = self._network.axes.get(name, {})
        lack = residual(recorded.outputs, given, reader.made, axes)
        shape = len(inputs_GRK), lack[0].numel() // len(inputs_GRK) if len(lack) else 0
        lack_GRO = lack.reshape(len(lack), *shape).transpose(0, 1)
        return ResidualRows(reader, inputs_GRK, lack_GRO)
