"""Budgets are met, and missed by less than the cheapest unit."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynopt_ray.criteria import Scope
from dynopt_ray.errors import BudgetError
from dynopt_ray.structure import Graph, trace
from dynopt_ray.training import Budget, Costs, Fraction, Threshold
from dynopt_ray.training.pruning.selection import Selection, select
from dynopt_ray.training.pruning.units import UnitPool, unit_pool
from dynopt_ray.training.pruning.weights import weight_pool

INPUTS = torch.zeros(2, 1, 8, 8)
BUDGETS: dict[str, Callable[[float], Budget]] = {
    "params": lambda limit: Budget(params=limit),
    "flops": lambda limit: Budget(flops=limit),
    "bytes": lambda limit: Budget(bytes=limit),
    "nonzero": lambda limit: Budget(nonzero=limit),
}
SCOPES: list[Scope] = ["layer", "global"]


def network() -> Graph:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 10, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(160, 20),
        nn.ReLU(),
        nn.Linear(20, 3),
    )
    return trace(model, INPUTS)


GRAPH = network()


def drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.width, generator=generator) for group in GRAPH}


def pool_of(
    scores: Mapping[str, Tensor], scope: Scope, min_widths: Mapping[str, int] | None = None
) -> UnitPool:
    return unit_pool(
        GRAPH,
        Costs(GRAPH, INPUTS),
        scores,
        scope,
        start_widths=GRAPH.widths,
        min_widths=min_widths or {},
    )


def widths_left(pool: UnitPool, selection: Selection) -> dict[str, int]:
    plan = pool.plan(selection.removed)
    gone = {edit.group: len(edit.remove or ()) for edit in plan}  # type: ignore[union-attr]
    return {name: width - gone.get(name, 0) for name, width in GRAPH.widths.items()}


def chosen(
    pool: UnitPool,
    target: Budget | Fraction | Threshold,
    scope: Scope,
    *,
    spare_fraction: float = 0.0,
) -> Selection:
    return select(pool, target, scope=scope, start=pool.costs.now(), spare_fraction=spare_fraction)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    scope=st.sampled_from(SCOPES),
    limit=st.floats(0.08, 0.95),
    kind=st.sampled_from(sorted(BUDGETS)),
)
def test_a_budget_is_met_and_no_group_could_have_kept_one_unit_more(
    seed: int, scope: Scope, limit: float, kind: Any
) -> None:
    pool = pool_of(drawn(seed), scope)
    selection = chosen(pool, BUDGETS[kind](limit), scope)
    allowed = limit * getattr(pool.costs.now(), kind)
    costs = costs_with_one_back(pool, selection.removed, kind)
    assert pool.cost(selection.removed, [kind])[kind] <= allowed
    assert all(cost > allowed for cost in costs.values())
    assert all(width >= 1 for width in widths_left(pool, selection).values())


def costs_with_one_back(pool: UnitPool, removed: Tensor, kind: Any) -> dict[str, float]:
    """What the network costs if each group gets the most important of its removed units back."""
    costs = {}
    for number, name in enumerate(pool.candidates.names):
        gone = (removed & (pool.candidates.owner == number)).nonzero()[:, 0]
        if len(gone):
            more = removed.clone()
            more[gone[pool.candidates.place[gone].argmax()]] = False
            costs[name] = pool.cost(more, [kind])[kind]
    return costs


@pytest.mark.parametrize("scope", SCOPES)
def test_within_a_group_the_least_important_go(scope: Scope) -> None:
    scores = drawn(7)
    pool = pool_of(scores, scope)
    for edit in pool.plan(chosen(pool, Budget(flops=0.3), scope).removed):
        gone = list(edit.remove or ())  # type: ignore[union-attr]
        kept = sorted(set(range(GRAPH[edit.group].width)) - set(gone))  # type: ignore[union-attr]
        score = scores[edit.group]  # type: ignore[union-attr]
        assert float(score[gone].max()) <= float(score[kept].min())


def test_what_stands_in_the_way_of_fewer_non_zero_weights_is_counted_too() -> None:
    pool = pool_of(drawn(1), "global", {"7": 20})
    lowest = pool.cost(pool.candidates.first(len(pool.candidates)), ["nonzero"])["nonzero"]
    with pytest.raises(BudgetError, match="cannot be met") as error:
        chosen(pool, Budget(nonzero=0.01), "global")
    assert f"the lowest reachable nonzero is {lowest:g}" in str(error.value)
    assert "hold most of what is left are '7' (20), '4' (1), '0' (1)" in str(error.value)


def test_several_limits_hold_together() -> None:
    pool = pool_of(drawn(1), "global")
    widths = widths_left(pool, chosen(pool, Budget(flops=0.4, params=0.2), "global"))
    cost, start = pool.costs.at(widths), pool.costs.now()
    assert cost.flops <= 0.4 * start.flops
    assert cost.params <= 0.2 * start.params


def test_an_absolute_flop_budget_is_that_of_one_sample() -> None:
    one = Costs(GRAPH, INPUTS).now().flops
    assert one * 2 == GRAPH.cost().flops
    assert (Costs(GRAPH, INPUTS).now().num_samples, GRAPH.cost().num_samples) == (1, None)
    pool = pool_of(drawn(1), "global")
    widths = widths_left(pool, chosen(pool, Budget.absolute(flops=one // 2), "global"))
    assert pool.costs.at(widths).flops <= one // 2


def test_the_computed_cost_is_that_of_the_network_cut() -> None:
    pool = pool_of(drawn(3), "global")
    removed = chosen(pool, Budget(flops=0.3), "global").removed
    predicted = pool.cost(removed, ["params", "nonzero", "flops", "bytes"])
    receipt = GRAPH.apply(pool.plan(removed))
    now = pool.costs.now()
    receipt.undo()
    assert predicted == {kind: getattr(now, kind) for kind in predicted}


def test_a_fraction_of_each_layer_is_rounded_down_in_each() -> None:
    pool = pool_of(drawn(2), "layer")
    widths = widths_left(pool, chosen(pool, Fraction(remove=0.7), "layer"))
    assert widths == {n: w - math.floor(0.7 * w + 1e-9) for n, w in GRAPH.widths.items()}


def test_a_fraction_overall_is_that_of_all_units() -> None:
    pool = pool_of(drawn(2), "global")
    widths = widths_left(pool, chosen(pool, Fraction(remove=0.7), "global"))
    assert sum(widths.values()) == 36 - 25


def test_a_threshold_takes_what_is_below_it_but_never_the_last_unit() -> None:
    scores = drawn(2)
    scores["0"] = torch.full((6,), 0.1)
    pool = pool_of(scores, "global")
    widths = widths_left(pool, chosen(pool, Threshold(0.5), "global"))
    assert widths["0"] == 1
    assert widths["4"] == int((scores["4"] >= 0.5).sum())


def test_least_widths_are_kept() -> None:
    pool = pool_of(drawn(1), "global", {"7": 15})
    assert widths_left(pool, chosen(pool, Budget(flops=0.2), "global"))["7"] >= 15


def test_a_spare_part_is_cut_on_top() -> None:
    pool = pool_of(drawn(1), "global")
    plain = chosen(pool, Fraction(remove=0.5), "global")
    more = chosen(pool, Fraction(remove=0.5), "global", spare_fraction=0.25)
    assert (int(plain.removed.sum()), plain.num_spare) == (18, 0)
    assert (int(more.removed.sum()), more.num_spare) == (22, 4)
    most = chosen(pool, Fraction(remove=0.9), "global", spare_fraction=0.5)
    assert (int(most.removed.sum()), most.num_spare) == (33, 1)
    assert more.fits(plain.removed)
    assert not more.fits(torch.zeros_like(plain.removed))


def test_a_budget_out_of_reach_names_the_lowest_cost_and_the_groups() -> None:
    pool = pool_of(drawn(1), "global", {"7": 20})
    lowest = pool.costs.at({"0": 1, "4": 1, "7": 20}).flops
    with pytest.raises(BudgetError, match="cannot be met") as error:
        chosen(pool, Budget(flops=0.005), "global")
    assert f"the lowest reachable flops is {lowest:g}" in str(error.value)
    assert "hold most of what is left are '0' (1), '4' (1), '7' (20)" in str(error.value)


def test_a_fraction_out_of_reach_names_how_many_can_go() -> None:
    pool = pool_of(drawn(1), "global")
    with pytest.raises(BudgetError, match="is 34 of 36 units, but only 33 can go: each of '0'"):
        chosen(pool, Fraction(remove=0.95), "global")


def test_weights_meet_a_nonzero_budget_exactly() -> None:
    costs = Costs(GRAPH, INPUTS)
    weights = {name: p.detach().abs() for name, p in GRAPH.model.named_parameters() if p.dim() > 1}
    pool = weight_pool(GRAPH, costs.now(), weights, "global")
    start = costs.now()
    removed = select(pool, Budget(nonzero=0.3), scope="global", start=start).removed
    receipt = GRAPH.apply(pool.plan(removed))
    assert costs.now().nonzero == math.floor(0.3 * start.nonzero)
    receipt.undo()
    with pytest.raises(BudgetError, match=r"lowest reachable nonzero is \d+.*biases"):
        select(pool, Budget(nonzero=0.001), scope="global", start=start)
    with pytest.raises(BudgetError, match="masked weights stay in their tensors"):
        select(pool, Budget(flops=0.5), scope="global", start=start)
