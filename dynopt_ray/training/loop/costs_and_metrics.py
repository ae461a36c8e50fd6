"""Measure what a network costs per sample and how well it performs."""

import copy
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

# Widths, relative to the present ones, that the latency model is fitted on. Pruning needs it for
# smaller networks, growing for larger ones.
_SHARES = (1 / 8, 2.0)


@dataclass(frozen=True)
class CostAndMetrics:
    """The size and quality of a network at one moment.

    Attributes:
        widths: group name -> width.
        cost: the cost of the network; FLOPs and latency are per sample.
        validation: metrics on the validation split.
    """

    widths: Mapping[str, int]
    cost: Cost
    validation: Metrics


class Costs:
    """Costs of a traced network, with FLOPs and latency per sample.

    `Graph.cost` counts the FLOPs of the inputs that the graph was traced with, which are at least
    two samples. An absolute budget needs a figure that does not depend on their number.

    Args:
        graph: the traced network.
        example_inputs: inputs of the network; only the first sample is used.
    """

    def __init__(self, graph: Graph, example_inputs: Inputs) -> None:
        self._graph = graph
        self._sample = take_rows(example_inputs, 1)
        traced = graph.cost().flops
        self._latency: LatencyModel | None = None
        self._correction = 1.0
        self._per_sample = measure(graph.model, self._sample).flops / traced if traced else 1.0

    def of_copy(self, graph: Graph) -> "Costs":
        """Return the costs of a copy of the graph, without running the copy.

        The copy may have other widths by now. Its FLOPs per sample are counted as those of the
        graph are when its widths change.
        """
        costs = copy.copy(self)
        costs._graph, costs._latency, costs._correction = graph, None, 1.0
        return costs

    def now(self, *, latency: bool = False) -> Cost:
        """Return the cost of the present network.

        Args:
            latency: whether to measure the latency too.
        """
        cost = self._scaled(self._graph.cost())
        if latency:
            cost = replace(cost, latency_ms=median_ms(self._graph.model, self._sample))
        return cost

    def at(self, widths: Mapping[str, int]) -> Cost:
        """Compute the cost at other widths; see `Graph.cost`.

        Searches call this thousands of times. Therefore it does not check first, as `Graph.cost`
        does, whether the network still has the shapes that the graph knows.
        """
        return self._scaled(self._graph.cost_at(widths))

    def latency_ms_at(self, widths: Mapping[str, int]) -> float:
        """Predict the latency at other widths by a model, which the first call fits."""
        if self._latency is None:
            self._latency = fit_latency(
                self._graph, self._sample, shares=_SHARES, measure_ms=median_ms
            )
        return self._correction * self._latency(widths)

    def latency_ms_after(self, plan: Plan) -> float:
        """Measure the latency that the network would have after a plan.

        The plan is applied, and undone after the measurement. The measurement also corrects the
        model behind `latency_ms_at`; see `correct`.
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
        """Scale the latency model so that it agrees with a measurement at these widths."""
        self._correction *= latency_ms / self.latency_ms_at(widths)

    def _scaled(self, cost: Cost) -> Cost:
        return replace(cost, flops=round(cost.flops * self._per_sample), num_samples=1)


def cost_and_metrics(
    graph: Graph, task: Task, costs: Costs, *, latency: bool = False
) -> CostAndMetrics:
    """Measure the widths, the cost and the validation metrics of the present network."""
    return CostAndMetrics(graph.widths, costs.now(latency=latency), task.evaluate(graph.model))
