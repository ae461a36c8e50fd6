"""What a network costs per sample, and how well it does."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dynopt_ray.structure import (
    Cost,
    Graph,
    Inputs,
    LatencyModel,
    Plan,
    fit_latency,
    measure,
    median_ms,
)
from dynopt_ray.tasks import Metrics, Task, take_rows

# Budgets ask for smaller networks when pruning, and for larger ones when growing.
_SHARES = (1 / 8, 2.0)


@dataclass(frozen=True)
class CostAndMetrics:
    """A network's size and quality at one moment.

    Attributes:
        widths: group name -> width.
        cost: what it costs; FLOPs and latency are those of one sample.
        validation: how well it does on the validation split.
    """

    widths: Mapping[str, int]
    cost: Cost
    validation: Metrics


class Costs:
    """Costs of a traced network, its FLOPs counted per sample.

    `Graph.cost` counts the FLOPs of the inputs that the graph was traced with, which is at least
    two samples; an absolute budget needs a figure that does not depend on how many.

    Args:
        graph: the traced network.
        example_inputs: what it is called with; the first sample counts.
    """

    def __init__(self, graph: Graph, example_inputs: Inputs) -> None:
        self._graph = graph
        self._sample = take_rows(example_inputs, 1)
        traced = graph.cost().flops
        self._latency: LatencyModel | None = None
        self._correction = 1.0
        self._per_sample = measure(graph.model, self._sample).flops / traced if traced else 1.0

    def now(self, *, latency: bool = False) -> Cost:
        """The cost of the network as it is.

        Args:
            latency: also time it.
        """
        cost = self._scaled(self._graph.cost())
        if latency:
            cost = replace(cost, latency_ms=median_ms(self._graph.model, self._sample))
        return cost

    def at(self, widths: Mapping[str, int]) -> Cost:
        """The cost at other widths, computed; see `Graph.cost`.

        Searches ask often, so it relies on the network being what it was when it was measured.
        """
        return self._scaled(self._graph.cost_at(widths))

    def latency_ms_at(self, widths: Mapping[str, int]) -> float:
        """The latency at other widths, by a model that is fitted when first asked."""
        if self._latency is None:
            self._latency = fit_latency(
                self._graph, self._sample, shares=_SHARES, measure_ms=median_ms
            )
        return self._correction * self._latency(widths)

    def latency_ms_after(self, plan: Plan) -> float:
        """The latency that a plan would leave, measured; the plan is applied and undone.

        From then on the model of `latency_ms_at` gives what was measured there.
        """
        receipt = self._graph.apply(plan) if plan else None
        try:
            latency = median_ms(self._graph.model, self._sample)
            self.correct(self._graph.widths, latency)
        finally:
            if receipt is not None:
                receipt.undo()
        return latency

    def correct(self, widths: Mapping[str, int], latency_ms: float) -> None:
        """Let the model give what was measured at these widths."""
        self._correction *= latency_ms / self.latency_ms_at(widths)

    def _scaled(self, cost: Cost) -> Cost:
        return replace(cost, flops=round(cost.flops * self._per_sample))


def cost_and_metrics(
    graph: Graph, task: Task, costs: Costs, *, latency: bool = False
) -> CostAndMetrics:
    """Widths, cost and validation metrics of a network as it is."""
    return CostAndMetrics(graph.widths, costs.now(latency=latency), task.evaluate(graph.model))
