"""Costs: computed from widths alone, they equal what running the network counts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import UnknownNameError
from dynopt_ray.structure import Cost, Grow, Mask, Shrink, fit_latency, measure, trace
from dynopt_ray.structure.tracing.forward import Inputs
from tests.structure.zoo import NETWORKS, trained


@pytest.mark.parametrize("name", NETWORKS)
def test_computed_equals_measured_at_any_width(name: str) -> None:
    model, inputs = trained(name)
    graph = trace(model, inputs)
    assert graph.cost() == measure(model, inputs)
    wanted = {g.name: max(1, g.width // 2) for g in graph}
    predicted = graph.cost(wanted)
    graph.apply([Shrink(n, keep=range(w)) for n, w in wanted.items() if w < graph[n].width])
    real = measure(model, inputs)
    assert (predicted.params, predicted.flops, predicted.bytes) == (
        real.params,
        real.flops,
        real.bytes,
    )


def test_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 10))
    cost = measure(model, torch.zeros(2, 3, 8, 8))
    params = 3 * 4 * 9 + 4 + 256 * 10 + 10
    flops = 2 * 2 * (3 * 4 * 9 * 64 + 256 * 10)
    assert cost == Cost(params, params, flops, 4 * params)


def test_receipt_has_costs_and_zeros_count() -> None:
    model, inputs = trained("mlp")
    graph = trace(model, inputs)
    receipt = graph.apply([Grow("0", units=4), Mask("4.weight", keep=torch.zeros(5, 9) > 0)])
    assert receipt.widths == {"0": (12, 16)}
    assert receipt.before.params == 7 * 12 + 12 + 12 * 9 + 9 + 9 * 5 + 5
    assert receipt.after == measure(model, inputs)
    zeros = 4 * 9 + 45  # what reads the new units, and what is masked
    assert receipt.after.nonzero == receipt.after.params - zeros
    assert receipt.after.relative_to(receipt.before, "params") == pytest.approx(
        receipt.after.params / receipt.before.params
    )


def test_latency_is_measured_on_request() -> None:
    model, inputs = trained("vgg")
    assert measure(model, inputs).latency_ms is None
    cost = measure(model, inputs, latency=True)
    assert cost.latency_ms is not None
    assert cost.latency_iqr_ms is not None
    assert cost.latency_ms > 0 <= cost.latency_iqr_ms


def test_unknown_group_is_named() -> None:
    model, inputs = trained("mlp")
    with pytest.raises(UnknownNameError, match="no width group '1'"):
        trace(model, inputs).cost({"1": 3})


@pytest.mark.parametrize("name", ["mlp", "resnet", "attention"])
def test_a_latency_model_finds_what_takes_the_time(name: str) -> None:
    model, inputs = trained(name)
    graph = trace(model, inputs)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def timed(model: nn.Module, inputs: Inputs) -> float:
        cost = measure(model, inputs)
        return 0.25 + 1e-6 * cost.flops + 2e-5 * cost.bytes

    latency = fit_latency(graph, inputs, measure_ms=timed)
    assert latency.relative_error < 1e-6
    widths = {g.name: max(1, g.width // 3) for g in graph}
    assert latency() == pytest.approx(timed(model, inputs))
    predicted = latency(widths)
    graph.apply([Shrink(n, keep=range(w)) for n, w in widths.items() if w < graph[n].width])
    assert predicted == pytest.approx(timed(model, inputs))
    graph.receipts[-1].undo()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class InSteps(nn.Module):
    """Its widths must be multiples of four."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if int(x.shape[-1]) % 4:
            raise ValueError("rows must be aligned")
        y: Tensor = self.last(x.relu())
        return y


@pytest.mark.parametrize("shares", [(1 / 8, 1.0), (0.3, 1.7), (0.01, 0.02)])
def test_latency_models_measure_widths_that_groups_can_have(shares: tuple[float, float]) -> None:
    graph = trace(InSteps(), x := torch.randn(3, 5))
    assert graph["first"].step == 4
    seen: list[int] = []

    def timed(model: nn.Module, inputs: Inputs) -> float:
        model(inputs)
        seen.append(model.get_parameter("first.weight").shape[0])
        return measure(model, inputs).flops * 1e-3

    fit_latency(graph, x, shares=shares, measure_ms=timed)
    assert len(seen) == 10
    assert all(width % 4 == 0 and width >= 4 for width in seen)


def test_bytes_that_operations_write() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(inplace=True), nn.Unflatten(1, (8,)), nn.GELU())
    graph = trace(nn.Sequential(*model, nn.Linear(8, 2)), torch.zeros(5, 3))
    assert graph.traffic_bytes({}) == 4 * 5 * (8 + 8 + 2)
    assert graph.traffic_bytes({"0": 3}) == 4 * 5 * (3 + 3 + 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_points": 3}, "num_points is 3"), ({"shares": (0.5, 0.5)}, r"shares is \(0.5, 0.5\)")],
)
def test_latency_models_need_points(options: dict[str, Any], message: str) -> None:
    model, inputs = trained("mlp")
    with pytest.raises(ValueError, match=message):
        fit_latency(trace(model, inputs), inputs, **options)


class Held(nn.Module):
    """Holds its first activation to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 20), nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = x + self.second(x).relu_().view(-1, 20)
        return out


def test_memory_of_activations() -> None:
    chain = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(inplace=True))
    assert measure(chain, torch.zeros(8, 10), memory=True).activation_bytes == 4 * 8 * 200
    assert measure(Held(), torch.zeros(8, 10), memory=True).activation_bytes == 4 * 8 * 60
    assert measure(chain, torch.zeros(8, 10)).activation_bytes is None


def test_figures_for_one_sample_are_not_compared_with_those_for_a_batch() -> None:
    model, batch = nn.Linear(4, 3), torch.zeros(8, 4)
    whole = measure(model, batch)
    single = replace(measure(model, batch[:1]), num_samples=1)
    assert trace(model, batch).cost().num_samples is None
    assert whole.flops == 8 * single.flops
    with pytest.raises(ValueError, match=r"flops of a pass on 1 sample\(s\) cannot be compared"):
        single.relative_to(whole, "flops")
    assert single.relative_to(whole, "params") == 1
