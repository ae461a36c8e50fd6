"""Costs: computed from widths alone, they equal what running the network counts."""

import pytest
import torch
from torch import nn

from dynopt_ray.errors import UnknownNameError
from dynopt_ray.structure import Cost, Grow, Mask, Shrink, measure, trace
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
    latency = measure(model, inputs, latency=True).latency_ms
    assert latency is not None
    assert latency > 0


def test_unknown_group_is_named() -> None:
    model, inputs = trained("mlp")
    with pytest.raises(UnknownNameError, match="no width group '1'"):
        trace(model, inputs).cost({"1": 3})
