"""A model of the latency: fitted on a few measured networks, asked about all widths."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from dynopt_ray.arrays import FloatArray
from dynopt_ray.structure.costs import latency_ms
from dynopt_ray.structure.graph import Graph, trace
from dynopt_ray.structure.plans import Edit, Grow, Shrink
from dynopt_ray.structure.tracing import Inputs


def median_ms(model: nn.Module, inputs: Inputs) -> float:
    """The time of one forward pass in milliseconds; see `measure`."""
    return latency_ms(model, inputs)[0]


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Milliseconds of one forward pass as a function of the widths. Made by `fit_latency`.

    A pass takes its time for calling operations, for arithmetic, for reading weights and for
    writing what it computes: the model is linear in the FLOPs, the bytes of parameters and buffers
    and the bytes that operations write, with coefficients that are not negative.

    Attributes:
        graph: the network that it describes.
        coefficients: milliseconds for the calls, per FLOP, per byte read and per byte written.
        relative_error: how far off it was, in the median, about each measured network when fitted
            on the others.
    """

    graph: Graph
    coefficients: tuple[float, float, float, float]
    relative_error: float

    def __call__(self, widths: Mapping[str, int] | None = None) -> float:
        """The latency in milliseconds that the network would have.

        Args:
            widths: group name -> width; groups not named keep theirs.

        Raises:
            UnknownNameError: no group of this name.
            ValueError: a width below 0.
        """
        return float(_features(self.graph, widths or {}) @ np.array(self.coefficients))


def fit_latency(
    graph: Graph,
    example_inputs: Inputs,
    *,
    num_points: int = 10,
    shares: tuple[float, float] = (1 / 8, 1.0),
    seed: int = 0,
    measure_ms: Callable[[nn.Module, Inputs], float] = median_ms,
) -> LatencyModel:
    """Measure copies of a network at a few widths and fit a `LatencyModel`.

    Half of them have the same share of every width, half a share drawn for each group.

    Args:
        graph: the traced network; it is not changed.
        example_inputs: what a pass is called with; their batch decides what the latency is of.
        num_points: how many networks are measured, at least 4.
        shares: the least and the largest share of every width that is measured.
        seed: of the drawn widths.
        measure_ms: what measures a network, in milliseconds.

    Raises:
        ValueError: fewer points than 4, or shares that are no range above 0.
    """
    if not 0 < shares[0] < shares[1]:
        raise ValueError(f"fit_latency: shares is {shares}; give two, the first above 0 and less")
    if num_points < 4:
        raise ValueError(f"fit_latency: num_points is {num_points}; it must be at least 4")
    points = _points(graph, num_points, shares, np.random.default_rng(seed))
    # Least relative error: the small networks are what budgets are about.
    latencies = np.array([_at(graph, widths, example_inputs, measure_ms) for widths in points])
    rows = np.stack([_features(graph, widths) for widths in points])
    scale = rows.max(axis=0).clip(min=1.0)
    rows = rows / scale
    errors = [
        abs(row @ _fitted(np.delete(rows, i, 0), np.delete(latencies, i)) / latencies[i] - 1)
        for i, row in enumerate(rows)
    ]
    coefficients = _fitted(rows, latencies) / scale
    return LatencyModel(graph, tuple(coefficients.tolist()), float(np.median(errors)))


def _points(
    graph: Graph, number: int, shares: tuple[float, float], rng: np.random.Generator
) -> list[dict[str, int]]:
    """The widths to measure."""
    points = [np.full(len(graph), share) for share in np.linspace(*shares, (number + 1) // 2)]
    points += [rng.uniform(*shares, len(graph)) for _ in range(number // 2)]
    return [
        {g.name: max(g.min_width, round(s * g.width)) for g, s in zip(graph, point, strict=True)}
        for point in points
    ]


def _at(
    graph: Graph,
    widths: Mapping[str, int],
    inputs: Inputs,
    measure_ms: Callable[[nn.Module, Inputs], float],
) -> float:
    """The measured latency of a copy at these widths."""
    model = copy.deepcopy(graph.model)
    plan: list[Edit] = []
    for group in graph:
        if widths[group.name] < group.width:
            plan.append(Shrink(group.name, keep=range(widths[group.name])))
        elif widths[group.name] > group.width:
            plan.append(Grow(group.name, widths[group.name] - group.width, exact=False))
    if plan:
        asked = graph.asked
        trace(model, asked.example_inputs, asked.fixed, asked.heads).apply(plan)
    return measure_ms(model, inputs)


def _features(graph: Graph, widths: Mapping[str, int]) -> FloatArray:
    cost = graph.cost(widths)
    return np.array([1.0, cost.flops, cost.bytes, graph.traffic_bytes(widths)])


def _fitted(rows: FloatArray, latencies: FloatArray) -> FloatArray:
    from scipy.optimize import nnls

    coefficients, _ = nnls(rows / latencies[:, None], np.ones(len(latencies)))
    return np.asarray(coefficients)
