"""A latency model: fitted to a few measured networks, evaluated at any widths."""

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
from dynopt_ray.structure.units import WidthGroup


def median_ms(model: nn.Module, inputs: Inputs) -> float:
    """Return the median time of one forward pass in milliseconds; see `measure`."""
    return latency_ms(model, inputs)[0]


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Milliseconds of one forward pass as a function of the widths. Made by `fit_latency`.

    A pass spends its time on calling operations, on arithmetic, on reading weights and on writing
    results. So the model is a constant plus a linear function of the FLOPs, the bytes of
    parameters and buffers and the bytes that operations write. No coefficient is negative.

    Attributes:
        graph: the network that it describes.
        coefficients: milliseconds for the calls, per FLOP, per byte read and per byte written.
        relative_error: the median relative error of the predictions for the measured networks,
            each predicted by a model that was fitted to the others.
    """

    graph: Graph
    coefficients: tuple[float, float, float, float]
    relative_error: float

    def __call__(self, widths: Mapping[str, int] | None = None) -> float:
        """Predict the network's latency in milliseconds.

        Args:
            widths: group name -> width; groups not named keep their width.

        Raises:
            UnknownNameError: no group has this name.
            ValueError: a width is not a whole number, or is below 0.
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

    Half of the copies have the same fraction of every width. The others have a fraction drawn for
    each group.

    Args:
        graph: the traced network; it is not changed.
        example_inputs: the inputs of a measured pass. The latency is that of this whole batch.
        num_points: number of networks to measure, at least 4.
        shares: the smallest and the largest fraction of a width to measure.
        seed: seed of the drawn widths.
        measure_ms: function that measures the latency of a network in milliseconds.

    Raises:
        ValueError: `num_points` is below 4, or `shares` are not two increasing numbers above 0.
    """
    if not 0 < shares[0] < shares[1]:
        raise ValueError(f"fit_latency: shares is {shares}; give two increasing numbers above 0")
    if num_points < 4:
        raise ValueError(f"fit_latency: num_points is {num_points}; it must be at least 4")
    points = _points(graph, num_points, shares, np.random.default_rng(seed))
    # `_fitted` minimises relative errors, because budgets ask for small and fast networks.
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
    """Return the widths to measure."""
    points = [np.full(len(graph), share) for share in np.linspace(*shares, (number + 1) // 2)]
    points += [rng.uniform(*shares, len(graph)) for _ in range(number // 2)]
    return [
        {g.name: _width(g, share) for g, share in zip(graph, point, strict=True)}
        for point in points
    ]


def _width(group: WidthGroup, share: float) -> int:
    """Return the width nearest to a share of the present one that the group can have."""
    fewest = group.min_width - group.width
    steps = max(round((share - 1) * group.width / group.step), -(-fewest // group.step))
    return group.width + steps * group.step


def _at(
    graph: Graph,
    widths: Mapping[str, int],
    inputs: Inputs,
    measure_ms: Callable[[nn.Module, Inputs], float],
) -> float:
    """Return the measured latency of a copy of the network at these widths."""
    model = copy.deepcopy(graph.model)
    plan: list[Edit] = []
    for group in graph:
        if widths[group.name] < group.width:
            plan.append(Shrink(group.name, keep=range(widths[group.name])))
        elif widths[group.name] > group.width:
            plan.append(Grow(group.name, widths[group.name] - group.width, exact=False))
    if plan:
        arguments = graph.arguments
        trace(model, arguments.example_inputs, arguments.fixed, arguments.heads).apply(plan)
    return measure_ms(model, inputs)


def _features(graph: Graph, widths: Mapping[str, int]) -> FloatArray:
    cost = graph.cost(widths)
    return np.array([1.0, cost.flops, cost.bytes, graph.traffic_bytes(widths)])


def _fitted(rows: FloatArray, latencies: FloatArray) -> FloatArray:
    from scipy.optimize import nnls

    coefficients, _ = nnls(rows / latencies[:, None], np.ones(len(latencies)))
    return np.asarray(coefficients)
