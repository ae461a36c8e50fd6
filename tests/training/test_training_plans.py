"""Cuts that are planned for several targets, and the predicted curve of `allocate`."""

import copy

import pytest
import torch
from torch import nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Edit, Graph, trace
from dynopt_ray.tasks import load_task
from dynopt_ray.training import (
    Budget,
    Costs,
    CutTarget,
    Fraction,
    Granularity,
    allocate,
    allocated_points,
    cost_and_metrics,
    plan_cuts,
    prune,
    sensitivity,
)

TASK = load_task("digits-mlp", {"hidden": [24, 12]})


def trained() -> nn.Module:
    model = TASK.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    TASK.train_steps(model, optimizer, 150, generator=torch.Generator().manual_seed(0))
    return model


MODEL = trained()


def traced_copy() -> Graph:
    return trace(copy.deepcopy(MODEL), TASK.example_inputs())


def planned(
    graph: Graph, targets: list[CutTarget], granularity: Granularity
) -> list[list[Edit] | None]:
    costs = Costs(graph, TASK.example_inputs())
    return plan_cuts(
        graph,
        TASK,
        targets,
        granularity=granularity,
        now=cost_and_metrics(graph, TASK, costs),
        costs=costs,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize(
    ("granularity", "targets"),
    [
        ("unit", [Budget(flops=0.5), Fraction(remove=0.7), {"0": 5}]),
        ("weight", [Budget(nonzero=0.5), Fraction(remove=0.7)]),
    ],
)
def test_plans_are_those_of_prune(granularity: Granularity, targets: list[CutTarget]) -> None:
    """With calibration inputs given, prune draws nothing before it scores."""
    for target, plan in zip(targets, planned(traced_copy(), targets, granularity), strict=True):
        ours, theirs = traced_copy(), traced_copy()
        assert plan
        ours.apply(plan, compensate=[TASK.arrays("train")[0]])
        prune(
            theirs,
            TASK,
            target=target,
            criterion="reconstruction",
            granularity=granularity,
            compensate=[TASK.arrays("train")[0]],
        )
        assert ours.widths == theirs.widths
        for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            assert torch.equal(one, other)


def test_planning_changes_nothing() -> None:
    graph = traced_copy()
    planned(graph, [Budget(flops=0.5)], "unit")
    planned(graph, [Fraction(remove=0.5)], "weight")
    for one, other in zip(graph.model.parameters(), MODEL.parameters(), strict=True):
        assert torch.equal(one, other)


def test_targets_out_of_reach_and_targets_that_hold_already() -> None:
    graph = traced_copy()
    targets: list[CutTarget] = [Budget(flops=1e-6), Budget(flops=1.0), Fraction(remove=0.999)]
    assert planned(graph, targets, "unit") == [None, [], None]
    assert planned(graph, [{"0": 24}], "unit") == [[]]
    assert planned(graph, [], "unit") == []
    with pytest.raises(EditError, match="99"):
        planned(graph, [{"0": 99}], "unit")


def test_points_are_what_allocate_chooses() -> None:
    graph = traced_copy()
    costs = Costs(graph, TASK.example_inputs())
    curves = sensitivity(graph, TASK, fractions=(0.25, 0.5, 0.75))
    fractions = (0.9, 0.6, 0.4)
    points = list(allocated_points(graph, costs, curves, kind="flops", fractions=fractions))
    assert len(points) == 3
    for fraction, point in zip(fractions, points, strict=True):
        assert point.widths == allocate(graph, TASK, Budget(flops=fraction), curves=curves)
        assert point.cost.flops <= fraction * costs.now().flops
        assert point.cost == costs.at(point.widths)
    increases = [point.increase for point in points]
    assert 0 <= increases[0] < increases[1] < increases[2]


def test_the_predicted_increase_is_the_sum_of_those_of_single_groups() -> None:
    graph = traced_copy()
    costs = Costs(graph, TASK.example_inputs())
    curves = sensitivity(graph, TASK, fractions=(0.5,))
    (point,) = allocated_points(graph, costs, curves, kind="params", fractions=(0.6,))
    expected = 0.0
    for name, rows in curves.groupby("group"):
        share = (graph[str(name)].width - point.widths[str(name)]) / (graph[str(name)].width / 2)
        expected += share * max(0.0, rows["loss"].iloc[1] - rows["loss"].iloc[0])
    assert point.increase == pytest.approx(expected)


def test_points_end_where_no_widths_are_narrow_enough() -> None:
    graph = traced_copy()
    costs = Costs(graph, TASK.example_inputs())
    curves = sensitivity(graph, TASK, fractions=(0.5,))
    points = list(allocated_points(graph, costs, curves, kind="flops", fractions=(0.8, 0.2, 0.1)))
    assert len(points) == 1
