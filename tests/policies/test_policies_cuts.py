"""Policies that cut once: what they choose is what they measured, and the optimum where known."""

import copy
import doctest
import importlib
from typing import Any

import pytest
import torch
from torch import nn

from dynopt_ray.errors import BudgetError, DivergedError, EditError, SpecError, UnknownNameError
from dynopt_ray.policies import (
    CUT_POLICIES,
    DEFAULT_COST,
    AllocatedCut,
    CostMixture,
    CutPolicy,
    CutResult,
    Cutting,
    LadderCut,
    SingleCut,
    WholeCut,
    cut_once,
    ladder,
    make_cut_policy,
)
from dynopt_ray.structure import plan_from_json, plan_to_json, trace
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import Budget, Costs, Fraction, cost_and_metrics, prune

TASK = load_task("digits-mlp", {"hidden": [48, 24]})
POLICIES: list[CutPolicy] = [LadderCut(), AllocatedCut(), SingleCut(0.5, 0.5)]


def trained(task: Task, num_steps: int = 300) -> nn.Module:
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    task.train_steps(model, optimizer, num_steps, generator=torch.Generator().manual_seed(0))
    return model


MODEL = trained(TASK)


def fresh() -> nn.Module:
    return copy.deepcopy(MODEL)


def cut(policy: Any, model: nn.Module | None = None, task: Task = TASK, **given: Any) -> CutResult:
    options = {"cost_weight": 0.3, "num_steps": 0, **given}
    return cut_once(model or fresh(), task, policy, **options)


def cutting(model: nn.Module, task: Task = TASK, **given: Any) -> Cutting:
    graph = trace(model, task.example_inputs())
    costs = Costs(graph, task.example_inputs())
    options = {"cost": DEFAULT_COST, "cost_weight": 0.3, **given}
    return Cutting(
        graph=graph,
        task=task,
        costs=costs,
        start=cost_and_metrics(graph, task, costs),
        calibration=[task.arrays("train")[0]],
        generator=torch.Generator().manual_seed(0),
        **options,
    )


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    one, other = ours.state_dict(), theirs.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_ladders_follow_the_cost() -> None:
    weights = [rung.weights for rung in ladder(CostMixture.of("nonzero"))]
    assert [None if w is None else round(1 - w.remove, 2) for w in weights] == [
        *(None, 0.5, 0.25, 0.12, 0.06, 0.03, 0.02)
    ]
    mixed = [rung.label for rung in ladder(DEFAULT_COST)]
    assert len(set(mixed)) == 16
    assert mixed[:2] == ["keep", "weights to 0.5"]
    assert mixed[-1] == "flops to 0.1, weights to 0.1"
    units = [rung.label for rung in ladder(CostMixture.of("flops"))]
    assert units == ["keep", "flops to 0.5", "flops to 0.25", "flops to 0.1"]


def test_the_ladder_makes_digits_networks_faster_at_nearly_the_same_accuracy() -> None:
    result = cut(LadderCut(), num_steps=200)
    assert result.after.cost.flops < 0.5 * result.before.cost.flops
    assert result.after.cost.nonzero < 0.5 * result.before.cost.nonzero
    assert result.after.validation.metric > result.before.validation.metric - 0.03
    assert result.utility_after > result.utility_before + 0.1
    assert result.test is not None
    assert result.test.metric > 0.9


def test_a_larger_cost_weight_cuts_at_least_as_far() -> None:
    costs = [cut(LadderCut(), cost_weight=weight).chosen.relative_cost for weight in (0, 0.1, 1, 9)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 0.2 > 0.15 > costs[-1]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_chosen_cut_is_carried_out_as_it_was_measured(policy: CutPolicy) -> None:
    result = cut(policy)
    assert result.after == result.chosen.after
    assert result.smooth_utility_after == result.chosen.smooth_utility
    assert result.after.widths == result.graph.widths
    assert len(result.receipts) == len(result.plan)


def test_the_ladder_takes_the_best_of_what_it_measured() -> None:
    result = cut(LadderCut(), cost_weight=0.2)
    assert len(result.compared) == 16
    utilities = [
        candidate.after.validation.smooth
        - 0.1 * candidate.after.cost.flops / result.before.cost.flops
        - 0.1 * candidate.after.cost.nonzero / result.before.cost.nonzero
        for candidate in result.compared
    ]
    assert result.chosen.smooth_utility == pytest.approx(max(utilities))
    assert utilities == pytest.approx(list(result.table["smooth_utility"]))
    assert result.table["chosen"].sum() == 1
    assert result.table.loc[result.table["chosen"], "flops"].item() == result.after.cost.flops


@pytest.mark.parametrize("policy", POLICIES)
def test_choosing_leaves_the_network_as_it_was(policy: CutPolicy) -> None:
    model = fresh()
    task = cutting(model)
    random = torch.get_rng_state()
    choice = policy.choose(task)
    assert choice.chosen in choice.compared
    assert same(model, MODEL)
    assert not task.graph.receipts
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_network(policy: CutPolicy) -> None:
    one, other = (cut(policy, num_steps=20, seed=5).graph.model for _ in range(2))
    assert same(one, other)


@pytest.mark.parametrize("policy", POLICIES)
def test_test_data_decide_nothing(policy: CutPolicy) -> None:
    data = TASK.data
    x, y = data["test"]
    data["test"] = (x, (y + 1) % 10)
    other = Task.from_arrays(model=TASK.model, **data)
    ours, theirs = cut(policy, num_steps=20), cut(policy, task=other, num_steps=20)
    assert same(ours.graph.model, theirs.graph.model)
    assert ours.test != theirs.test


@pytest.mark.parametrize("num_steps", [0, 1, 37])
@pytest.mark.parametrize("policy", [*POLICIES, "ladder_cut"])
def test_exactly_the_given_number_of_steps_is_taken(policy: Any, num_steps: int) -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    taken = []
    optimizer.register_step_post_hook(lambda *_: taken.append(1))
    result = cut(policy, model, num_steps=num_steps, optimizer=optimizer)
    assert len(taken) == num_steps
    assert (result.training is None) == (num_steps == 0)


def test_training_recovers_what_the_cut_lost() -> None:
    result = cut(SingleCut(remove_units=0.9), num_steps=200)
    lost = result.before.validation.smooth - result.chosen.after.validation.smooth
    assert lost > 0.05
    assert result.after.validation.smooth > result.chosen.after.validation.smooth + lost / 4


def test_the_optimizer_follows_and_masks_last() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    TASK.train_steps(model, optimizer, 1)
    result = cut(SingleCut(0.5, 0.75), model, num_steps=30, optimizer=optimizer)
    for parameter in model.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape
    assert result.after.cost.nonzero == result.chosen.after.cost.nonzero
    weights = [p for p in model.parameters() if p.dim() > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == pytest.approx(0.75 * sum(weight.numel() for weight in weights), abs=1)


@pytest.mark.parametrize(("units", "weights"), [(0.5, None), (None, 0.8)])
def test_a_single_cut_is_that_of_prune(units: float | None, weights: float | None) -> None:
    ours = cut(SingleCut(units, weights), seed=3)
    theirs = fresh()
    prune(
        theirs,
        TASK,
        target=Fraction(remove=units or weights or 0),
        criterion="reconstruction",
        granularity="unit" if units else "weight",
        seed=3,
    )
    assert same(ours.graph.model, theirs)


@pytest.mark.parametrize(
    "policy", [LadderCut, AllocatedCut, lambda **given: SingleCut(0.5, 0.8, **given)]
)
def test_the_criterion_ranks(policy: Any) -> None:
    ours, theirs = cut(policy()), cut(policy(criterion="magnitude"))
    assert not same(ours.graph.model, theirs.graph.model)
    with pytest.raises(UnknownNameError, match="Did you mean 'magnitude'"):
        cut(policy(criterion="magnitud"))


def test_both_cuts_follow_one_another() -> None:
    result = cut(SingleCut(0.5, 0.8))
    assert sum(result.after.widths.values()) == sum(result.before.widths.values()) / 2
    left = [p for p in result.graph.model.parameters() if p.dim() > 1]
    kept = sum(int(weight.count_nonzero()) for weight in left)
    assert kept == pytest.approx(0.2 * sum(weight.numel() for weight in left), abs=1)
    assert result.chosen.cut.label == "units to 0.5, weights to 0.2"


def test_plans_are_data_from_which_the_cut_can_be_repeated() -> None:
    result = cut(LadderCut(), cost_weight=0.5)
    graph = trace(fresh(), TASK.example_inputs())
    for plan in result.plan:
        graph.apply(plan_from_json(plan_to_json(plan)))
    assert graph.widths == result.graph.widths
    assert graph.cost().nonzero <= result.after.cost.nonzero


def test_cuts_that_cannot_be_made_are_left_out() -> None:
    tiny = Budget(flops=1e-6)
    ladder_ = LadderCut((WholeCut(units=tiny), WholeCut(units=Fraction(remove=0.5))))
    assert [c.cut.label for c in cut(ladder_).compared] == ["units to 0.5"]


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (LadderCut((WholeCut(units=Budget(flops=1e-6)),)), BudgetError, "flops to 1e-06"),
        (LadderCut(()), BudgetError, "none of these cuts can be made: no cuts"),
        (SingleCut(0.999), BudgetError, "cannot be cut to units to 0.001"),
        (LadderCut((WholeCut(units={"0": 99}),)), EditError, "99"),
        ("laddercut", SpecError, "Did you mean 'ladder_cut'"),
        ({"name": "single_cut"}, SpecError, "give remove_units, remove_weights or both"),
        ({"name": "single_cut", "remove_units": 1.5}, SpecError, "remove is 1.5"),
        ({"name": "ladder_cut", "rungs": 3}, SpecError, "no argument 'rungs'"),
    ],
)
def test_impossible_cuts_are_refused_and_change_nothing(
    policy: Any, error: type[Exception], message: str
) -> None:
    model = fresh()
    with pytest.raises(error, match=message):
        cut(policy, model)
    assert same(model, MODEL)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"cost_weight": -0.1}, ValueError, "cost_weight is -0.1"),
        ({"cost_weight": float("nan")}, ValueError, "cost_weight is nan"),
        ({"num_steps": -1}, ValueError, "num_steps is -1"),
        ({"num_steps": 2.0}, ValueError, "num_steps is 2.0"),
        ({"cost": "flop"}, UnknownNameError, "Did you mean 'flops'"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_arguments_out_of_range_are_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cut("ladder_cut", **given)


def test_a_network_without_widths_is_refused() -> None:
    with pytest.raises(EditError, match="no width of this network can be resized"):
        cut("ladder_cut", nn.Linear(64, 10))


def test_a_training_that_diverges_leaves_the_network_as_it_was() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
    with pytest.raises(DivergedError):
        cut("ladder_cut", model, num_steps=50, optimizer=optimizer)
    assert same(model, MODEL)


def test_policies_by_name() -> None:
    assert {name: type(make_cut_policy(name)) for name in ("ladder_cut", "allocated_cut")} == {
        "ladder_cut": LadderCut,
        "allocated_cut": AllocatedCut,
    }
    made = make_cut_policy({"name": "single_cut", "remove_weights": 0.9})
    assert made == SingleCut(remove_weights=0.9)
    assert sorted(CUT_POLICIES) == list(CUT_POLICIES)


@pytest.mark.parametrize("policy", [LadderCut(), AllocatedCut()])
def test_a_regression_is_judged_by_its_metric(policy: CutPolicy) -> None:
    x = torch.randn(900, 5, generator=torch.Generator().manual_seed(0))
    y = (x[:, :1] * x[:, 1:2]).relu() + x[:, 2:3]
    task = Task.from_arrays(
        model=lambda: nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 1)),
        train=(x[:600], y[:600]),
        validation=(x[600:], y[600:]),
        loss="mse",
    )
    result = cut(policy, trained(task), task)
    assert result.before.validation.confidence is None
    assert result.after.validation.metric > result.before.validation.metric - 0.1
    assert result.after.widths["0"] < 40
    assert result.utility_after == result.smooth_utility_after > result.utility_before + 0.05


@pytest.mark.parametrize("policy", [LadderCut(), AllocatedCut()])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits-cnn", {"channels": [8, 8], "hidden": 16}),
        ("digits-transformer", {"width": 16, "num_heads": 2, "feedforward": 24, "num_blocks": 1}),
    ],
)
def test_other_networks_become_smaller(
    policy: CutPolicy, name: str, options: dict[str, Any]
) -> None:
    task = load_task(name, options)
    model = trained(task, 120)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    result = cut(policy, model, task, num_steps=60, optimizer=optimizer)
    assert result.after.cost.flops < 0.65 * result.before.cost.flops
    assert result.smooth_utility_after > result.smooth_utility_before + 0.08


def test_the_example_in_the_docstring_runs() -> None:
    results = doctest.testmod(importlib.import_module("dynopt_ray.policies.cuts.run"))
    assert results.attempted
    assert not results.failed
