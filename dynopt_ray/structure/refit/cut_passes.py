"""All batches side by side in passes through the cut network, which is refitted on the way."""

from collections import Counter

from dynopt_ray.structure.refit.cut_network import Arrival, CutNetwork, WaitingMode
from dynopt_ray.structure.refit.operations import Use
from dynopt_ray.structure.refit.original_network import OriginalNetwork, RecordedOutputs
from dynopt_ray.structure.refit.side_by_side import NetworkPass, Turns


class CutPasses:
    """One pass of each batch through the cut network. The passes wait for each other.

    The pass of a batch begins when a use needs its rows.

    Args:
        network: the cut network.
        original: the original network.
        turns: runs the passes.

    Attributes:
        num_passed: weight -> the number of its uses that the batches may pass.
    """

    def __init__(self, network: CutNetwork, original: OriginalNetwork, turns: Turns) -> None:
        self.num_passed: Counter[str] = Counter()
        self._network = network
        self._original = original
        self._turns = turns
        self._passes: dict[int, tuple[NetworkPass[Arrival], WaitingMode]] = {}

    def refit_at(self, use: Use) -> bool:
        """Collect rows at a use of a weight, refit the weight, and let the batches pass.

        Returns:
            Whether any batch has arrived there. If none has arrived at a first use, nothing
            changes.
        """
        name, number = use
        # All batches run through the original network first: each change from one version of the
        # network to the other takes time.
        recorded = [*self._original.recorded(use)]
        arrived = [self._collected(use, batch, outputs) for batch, outputs in recorded]
        if number or any(arrived):
            self.num_passed[name] = number + 1
        if any(arrived) and self._network.corrections[name].has_rows:
            self._network.refit(name)
        return any(arrived)

    def refit_at_all_uses(self, name: str) -> None:
        """Refit a weight at each of its uses, and the weights that the batches meet in between."""
        use: Use | None = (name, 0)
        while use is not None:
            arrived = self.refit_at(use)
            if use[1]:
                self._original.finish(use)
            elif not arrived:
                return
            use = self._next_use() if self._between_uses() else None

    def let_pass(self, name: str) -> None:
        """Let the batches pass all uses of a weight."""
        self.num_passed[name] = len(self._network.uses[name])

    def stop(self) -> None:
        """End all passes."""
        for paused, _ in self._passes.values():
            paused.pausable.stop()
        self._passes.clear()

    def _between_uses(self) -> bool:
        """Whether the batches have passed some uses of a weight, but not all."""
        uses = self._network.uses
        return any(0 < passed < len(uses[name]) for name, passed in self.num_passed.items())

    def _next_use(self) -> Use | None:
        """Let all batches continue, and return a use at which one of them waits."""
        for number in [*self._passes]:
            self._continue(number)
        waiting = {one.value.use for one, _ in self._passes.values() if one.value is not None}
        order = [*self._network.uses]
        # Batches may take different paths. Those at a later use wait only for that use.
        return min(waiting, key=lambda use: (not use[1], order.index(use[0])), default=None)

    def _collected(self, use: Use, number: int, outputs: RecordedOutputs) -> bool:
        """Take the rows of a batch into account; False if none arrive."""
        arrival = self._continue(number, (use, outputs))
        if arrival is None or arrival.rows is None:
            return arrival is not None
        if arrival.rows.residual_GRO.numel():  # an expert may get no rows
            self._network.corrections[use[0]].add(arrival.rows, later=use[1] > 0)
        return arrival.rows.residual_GRO.numel() > 0

    def _continue(
        self, number: int, asked: tuple[Use, RecordedOutputs] | None = None
    ) -> Arrival | None:
        """Let a batch continue until it arrives at a use.

        Args:
            number: the number of the batch.
            asked: the use, and the outputs of the original network there. None: continue until the
                batch has to wait.

        Returns:
            The arrival; None if the pass ends or has to wait at another use.
        """
        if number not in self._passes:
            mode = WaitingMode(self._network, self.num_passed)
            self._passes[number] = self._turns.begin(self._network.version, number, mode.run), mode
        one, mode = self._passes[number]
        use = None if asked is None else asked[0]
        while not one.ended and self._may_continue(one.value, use):
            mode.asked = asked
            arrival = self._turns.resume(one)
            if arrival is not None and arrival.use == use:
                one.value = Arrival(use)  # without the rows, which take memory
                return arrival
        return None

    def _may_continue(self, arrival: Arrival | None, use: Use | None) -> bool:
        """Whether a paused pass may continue on its way to a use."""
        if arrival is None or arrival.use == use:
            return True
        name, number = arrival.use
        return self.num_passed[name] > number
