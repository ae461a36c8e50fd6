"""The cost that utility charges for, when it is a mixture."""

import doctest
import importlib
from typing import Any

import pytest

from dynopt_ray.errors import UnknownNameError
from dynopt_ray.policies import CHARGED_COSTS, DEFAULT_COST, CostMixture
from dynopt_ray.structure import Cost

START = Cost(params=200, nonzero=100, flops=1_000, bytes=800)
NOW = Cost(params=100, nonzero=20, flops=400, bytes=480)
RELATIVE = {"params": 0.5, "nonzero": 0.2, "flops": 0.4, "bytes": 0.6}


@pytest.mark.parametrize("kind", CHARGED_COSTS)
def test_a_single_cost_by_name(kind: Any) -> None:
    mixture = CostMixture.of(kind)
    assert mixture.relative(NOW, START) == pytest.approx(RELATIVE[kind])
    assert mixture.kinds == (kind,)
    assert str(mixture) == kind


def test_a_mixture_is_a_weighted_sum() -> None:
    mixture = CostMixture.of({"flops": 0.75, "nonzero": 0.25})
    assert mixture.relative(NOW, START) == pytest.approx(0.75 * 0.4 + 0.25 * 0.2)
    assert mixture.relative(START, START) == pytest.approx(1)
    assert str(mixture) == "0.75 flops + 0.25 nonzero"
    assert CostMixture.of(mixture) is mixture


def test_the_default_is_half_flops_and_half_nonzero_weights() -> None:
    assert CostMixture.of({"flops": 0.5, "nonzero": 0.5}) == DEFAULT_COST
    assert DEFAULT_COST.relative(NOW, START) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("cost", "error", "message"),
    [
        ("flop", UnknownNameError, "no cost 'flop'. Did you mean 'flops'"),
        ("latency_ms", UnknownNameError, "no cost 'latency_ms'"),
        ({"flops": 0.5, "weights": 0.5}, UnknownNameError, "no cost 'weights'"),
        ({}, ValueError, "cost is empty"),
        ({"flops": 0.5}, ValueError, "the weights of flops add up to 0.5; they must add up to 1"),
        ({"flops": 1.5, "nonzero": -0.5}, ValueError, "the weight of nonzero is -0.5"),
        ({"flops": "1"}, ValueError, "the weight of flops is '1'; it must be a number"),
        ({"flops": float("nan")}, ValueError, "the weight of flops is nan"),
        (0.5, TypeError, "cost is 0.5; pass a name or"),
    ],
)
def test_other_mixtures_are_refused(cost: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CostMixture.of(cost)


def test_the_example_in_the_docstring_runs() -> None:
    results = doctest.testmod(importlib.import_module("dynopt_ray.policies.costs"))
    assert results.attempted
    assert not results.failed
