"""Mixtures of costs."""

import math
from typing import Any

import numpy as np
import pytest

from dynopt_ray.errors import UnknownNameError
from dynopt_ray.policies import CHARGED_COSTS, DEFAULT_COST, CostMixture
from dynopt_ray.structure import Cost

START = Cost(params=1000, nonzero=1000, flops=4000, bytes=4000)
NOW = Cost(params=500, nonzero=100, flops=1000, bytes=2000)


def test_a_kind_of_cost_is_a_mixture_of_one() -> None:
    for kind in CHARGED_COSTS:
        assert CostMixture.of(kind).relative(NOW, START) == NOW.relative_to(START, kind)
        assert str(CostMixture.of(kind)) == kind


def test_only_ratios_of_weights_matter() -> None:
    mixture = CostMixture.of({"flops": 3, "nonzero": 1})
    assert mixture == CostMixture.of({"nonzero": 0.25, "flops": 0.75, "params": 0})
    assert mixture.relative(NOW, START) == pytest.approx(0.75 * 0.25 + 0.25 * 0.1)
    assert str(mixture) == "0.25 nonzero + 0.75 flops"
    assert DEFAULT_COST.relative(NOW, START) == pytest.approx(0.175)
    assert DEFAULT_COST.kinds == ("nonzero", "flops")
    assert CostMixture.of(DEFAULT_COST) is DEFAULT_COST


def test_many_networks_at_once() -> None:
    relative = np.array([[1.0, 1.0, 1.0, 1.0], [0.5, 0.1, 0.25, 0.5]])
    found = DEFAULT_COST.of_each(relative)
    assert found.tolist() == pytest.approx([1.0, 0.175])


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"flops": 0},
        {"flops": -1},
        {"flops": 2, "nonzero": -1},
        {"flops": math.nan},
        {"flops": math.inf},
    ],
)
def test_wrong_weights_are_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match="weights must be finite numbers of at least 0"):
        CostMixture.of(weights)


@pytest.mark.parametrize("cost", [0.5, None, {"flops": "1"}, {"flops": True}])
def test_what_is_no_cost_is_refused(cost: Any) -> None:
    with pytest.raises(TypeError, match="cost is "):
        CostMixture.of(cost)


@pytest.mark.parametrize("cost", ["flop", "latency_ms", {"flop": 1.0}])
def test_unknown_kinds_are_refused(cost: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean|Known"):
        CostMixture.of(cost)
