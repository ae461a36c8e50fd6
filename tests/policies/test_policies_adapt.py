"""`adapt`: it keeps to its budget and never ends with less smooth utility."""

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dynopt_ray.errors import BudgetError, EditError, UnknownNameError
from dynopt_ray.policies import (
    CHARGED_COSTS,
    DEFAULT_ACTIONS,
    FEATURES,
    ActionMask,
    ActionSet,
    ConstantPolicy,
    DataSizedWidths,
    Policy,
    RandomPolicy,
    StalledGrowth,
    UselessShrinking,
    adapt,
)
from dynopt_ray.policies.observation import Observation
from dynopt_ray.structure import trace
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import Budget

STOP = DEFAULT_ACTIONS.place("stop")


TASK = load_task("digits-mlp", {"hidden": [32, 16]})


def trained(task: Task = TASK, num_steps: int = 150) -> nn.Module:
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    task.train_steps(model, optimizer, num_steps, generator=torch.Generator().manual_seed(0))
    return model


MODEL = trained()


def fresh() -> nn.Module:
    return copy.deepcopy(MODEL)


@dataclass
class Script:
    """A policy that takes the given actions, legal or not, and records the action masks."""

    actions: list[str]
    masks: list[ActionMask] = field(default_factory=list)

    def act(self, observation: Observation, action_mask: ActionMask) -> int:  # noqa: ARG002
        self.masks.append(action_mask.copy())
        return DEFAULT_ACTIONS.place(self.actions[len(self.masks) - 1])


def test_a_rule_may_be_given_by_name() -> None:
    options: dict[str, Any] = {"cost_weight": 0.3, "horizon": 3, "train_steps": 2}
    named = adapt(fresh(), TASK, "data_sized_widths", **options)
    made = adapt(fresh(), TASK, DataSizedWidths(), **options)
    assert named.after.widths == made.after.widths
    with pytest.raises(UnknownNameError, match="Did you mean 'data_sized_widths'"):
        adapt(fresh(), TASK, "data_size_widths", **options)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_never_ends_with_less_smooth_utility(seed: int) -> None:
    model = fresh()
    result = adapt(model, TASK, RandomPolicy(seed), cost_weight=0.3, horizon=8, train_steps=5)
    assert result.smooth_utility_after >= result.smooth_utility_before
    assert result.smooth_utility_after == pytest.approx(result.history["smooth_utility"].max())
    best = result.history.iloc[result.best_step]
    assert best["smooth_utility"] == pytest.approx(result.smooth_utility_after)
    assert best["utility"] == pytest.approx(result.utility_after)
    after, before = result.after.cost, result.before.cost
    charged = 0.3 * (after.relative_to(before, "flops") + after.relative_to(before, "nonzero")) / 2
    assert result.utility_after == pytest.approx(result.after.validation.metric - charged)
    assert result.smooth_utility_after == pytest.approx(result.after.validation.smooth - charged)
    # The result describes the network as it is.
    assert trace(model, TASK.example_inputs()).widths == dict(result.after.widths)
    assert TASK.evaluate(model) == result.after.validation
    assert result.test == TASK.evaluate(model, "test")


def test_a_bad_policy_changes_nothing() -> None:
    """Growing at a high price only loses utility, so the start is restored, bit for bit."""
    model = fresh()
    policy = ConstantPolicy("grow")
    result = adapt(model, TASK, policy, cost_weight=5.0, horizon=4, train_steps=2)
    assert result.best_step == 0
    assert result.receipts == ()
    pairs = zip(model.parameters(), MODEL.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["nonzero", "params", "flops"])
def test_meets_its_budget(kind: str) -> None:
    model, limit = fresh(), Budget(**{kind: 0.4})  # type: ignore[arg-type]
    result = adapt(
        model, TASK, RandomPolicy(0), cost_weight=0.1, budget=limit, horizon=12, train_steps=5
    )
    start, end = getattr(result.before.cost, kind), getattr(result.after.cost, kind)
    assert end <= 0.4 * start
    assert result.after.validation.metric > 0.7
    # Once a kept row is within the budget, no later kept row is above it.
    costs = result.history[kind][result.history["kept"]] <= 0.4 * start
    assert costs[costs.idxmax() :].all()


@pytest.mark.parametrize("rule", [UselessShrinking(), StalledGrowth(), DataSizedWidths()])
def test_rules_meet_a_budget(rule: Policy) -> None:
    limit = Budget(flops=0.5)
    result = adapt(fresh(), TASK, rule, cost_weight=0.1, budget=limit, horizon=16, train_steps=2)
    assert result.after.cost.flops <= 0.5 * result.before.cost.flops


def test_above_the_budget_only_actions_that_lower_the_exceeded_cost_are_legal() -> None:
    script = Script(["shrink", "shrink", "prune", "grow"])
    with pytest.raises(EditError, match="the policy chose prune"):
        adapt(fresh(), TASK, script, cost_weight=0.1, budget=Budget(flops=0.2), train_steps=1)
    assert script.masks[0].tolist() == [0, 0, 1, 0, 0]


def test_decisions_that_break_the_budget_are_rolled_back() -> None:
    script = Script(["grow", "keep", "stop"])
    budget = Budget(params=1.05)
    result = adapt(fresh(), TASK, script, cost_weight=0.0, budget=budget, train_steps=2)
    assert result.history["kept"].tolist() == [True, False, True]
    assert result.history["action"].tolist()[1:] == ["grow", "keep"]
    assert dict(result.after.widths) == {"0": 32, "2": 16}


def test_a_budget_out_of_reach_leaves_the_network_alone() -> None:
    model = fresh()
    with pytest.raises(BudgetError, match="the lowest reached is params"):
        adapt(
            model,
            TASK,
            RandomPolicy(0),
            cost_weight=0.1,
            budget=Budget(params=0.01),
            horizon=4,
            train_steps=1,
        )
    pairs = zip(model.parameters(), MODEL.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_optimizer_follows_edits_and_receipts_undo_them() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    script = Script(["shrink", "shrink", "stop"])
    result = adapt(model, TASK, script, cost_weight=0.5, optimizer=optimizer, train_steps=3)
    for parameter in model.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape
    assert len(result.receipts) == 2
    for receipt in reversed(result.receipts):
        receipt.undo()
    assert result.graph.widths == dict(result.before.widths)


def test_the_same_seed_gives_the_same_adaptation() -> None:
    results = []
    for _ in range(2):
        model = fresh()
        adapt(model, TASK, RandomPolicy(4), cost_weight=0.3, horizon=6, train_steps=3, seed=1)
        results.append(model)
    pairs = zip(results[0].parameters(), results[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_callers_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    adapt(fresh(), TASK, RandomPolicy(0), cost_weight=0.3, horizon=3, train_steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_adapts_a_convolutional_network() -> None:
    task = load_task("digits-cnn", {"channels": [4, 6], "hidden": 12})
    model = trained(task, 30)
    actions = ActionSet()
    script = Script(["shrink", "prune", "grow", "shrink", "stop"])
    result = adapt(model, task, script, cost_weight=1.0, actions=actions, train_steps=3)
    assert result.utility_after > result.utility_before
    assert np.isfinite(result.history["loss"]).all()


@pytest.mark.parametrize(
    ("option", "value"), [("cost_weight", -0.1), ("horizon", 0), ("train_steps", 0)]
)
def test_numbers_out_of_range_are_named(option: str, value: float) -> None:
    options = {"cost_weight": 0.1, option: value}
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        adapt(fresh(), TASK, RandomPolicy(0), **options)  # type: ignore[arg-type]


def test_a_network_without_a_width_to_change_is_refused() -> None:
    x, y = TASK.arrays("train")
    task = Task.from_arrays(model=lambda: nn.Linear(64, 10), train=(x, y), validation=(x, y))
    with pytest.raises(EditError, match="no width"):
        adapt(task.new_model(seed=0), task, RandomPolicy(0), cost_weight=0.1)


def test_the_first_observation_describes_the_start() -> None:
    """At the start every relative cost is 1, and the losses are those of the given network."""

    class Spy:
        def act(self, observation: Observation, action_mask: ActionMask) -> int:
            del action_mask
            self.seen = dict(zip(FEATURES, observation.tolist(), strict=True))
            return STOP

    spy = Spy()
    adapt(fresh(), TASK, spy, cost_weight=0.3)
    assert [spy.seen[f"cost_{kind}"] for kind in CHARGED_COSTS] == [1, 1, 1, 1]
    validation, train = TASK.evaluate(MODEL), TASK.evaluate(MODEL, "train")
    assert spy.seen["train_loss"] == pytest.approx(np.log1p(train.loss))
    assert spy.seen["loss_gap"] == pytest.approx(validation.loss - train.loss, abs=1e-6)
    assert spy.seen["metric"] == pytest.approx(validation.smooth)
    assert (spy.seen["cost_weight"], spy.seen["steps_left"]) == (pytest.approx(0.3), 1)


class Failing:
    """Shrinks twice, then makes a mistake."""

    def __init__(self, mistake: str) -> None:
        self.mistake = mistake
        self.num_decisions = 0

    def act(self, _: Observation, __: ActionMask) -> int:
        self.num_decisions += 1
        if self.num_decisions < 3:
            return DEFAULT_ACTIONS.place("shrink")
        if self.mistake == "raise":
            raise RuntimeError("no idea")
        return 17


@pytest.mark.parametrize("mistake", ["illegal", "raise"])
def test_after_a_mistake_of_the_policy_the_network_is_as_before_the_call(mistake: str) -> None:
    model = fresh()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    TASK.train_steps(model, optimizer, 3, generator=torch.Generator().manual_seed(0))
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    policy = Failing(mistake)
    error = EditError if mistake == "illegal" else RuntimeError
    with pytest.raises(error, match=r"the policy chose number 17|no idea"):
        adapt(model, TASK, policy, cost_weight=0.1, train_steps=2, optimizer=optimizer)
    assert policy.num_decisions == 3
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for key, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state["state"][key][name]) for name, value in values.items())
