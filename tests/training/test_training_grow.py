"""Growing: evenly, in exact steps, as far as the target."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import BudgetError, DivergedError, EditError, UnknownNameError
from dynopt_ray.schedules import constant
from dynopt_ray.structure import Inputs, Mask, measure, trace
from dynopt_ray.tasks import Task
from dynopt_ray.training import Budget, Fraction, grow, stalled

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]


def test_a_budget_is_used_up_evenly(blobs: Task, trained: Trained) -> None:
    model, optimizer = trained()
    result = grow(model, blobs, target=Budget(params=2.0), train=5, rounds=3, optimizer=optimizer)
    params = result.history["params"]
    for number in (1, 2, 3):
        limit = params[0] * (1 + number / 3)
        assert limit - 25 < params[number] <= limit
    widths = result.after.widths
    assert abs(widths["0"] / 12 - widths["2"] / 8) <= 1 / 8
    assert result.history["num_added"].sum() == sum(widths.values()) - 20
    assert result.after.validation == blobs.evaluate(model)
    assert result.test == blobs.evaluate(model, "test")
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == parameter.shape


@pytest.mark.parametrize("init", ["fresh", "split", "gradmax"])
def test_every_step_is_exact(blobs: Task, trained: Trained, init: Any) -> None:
    model, optimizer = trained()
    losses = []
    inner = optimizer.register_step_pre_hook(lambda *_: losses.append(blobs.evaluate(model).loss))
    before = blobs.evaluate(model).loss
    result = grow(
        model,
        blobs,
        target={"0": 20, "2": 12},
        init=init,
        train=1,
        rounds=2,
        optimizer=optimizer,
    )
    inner.remove()
    assert losses[0] == pytest.approx(before, rel=1e-4)
    assert losses[1] == pytest.approx(result.history["loss"][1], rel=1e-4)
    assert result.history["width/0"].tolist() == [12, 16, 20]
    assert result.history["width/2"].tolist() == [8, 10, 12]


@pytest.mark.parametrize("init", ["fresh", "gradmax"])
def test_rounds_after_the_target_only_train(blobs: Task, init: Any) -> None:
    model = blobs.new_model(seed=0)
    result = grow(
        model, blobs, target={"0": 20}, init=init, train=2, rounds=3, schedule=constant(1.0)
    )
    assert result.history["width/0"].tolist() == [12, 20, 20, 20]
    assert result.history["num_trainings"].tolist() == [0, 1, 1, 1]
    assert len(result.receipts) == 1


def test_when_decides_how_long_it_trains_before_the_next_step(blobs: Task) -> None:
    seen: list[int] = []

    def third_time(losses: Any) -> bool:
        seen.append(len(losses))
        return len(losses) == 3

    result = grow(
        blobs.new_model(seed=0), blobs, target={"0": 14}, train=2, rounds=2, when=third_time
    )
    assert seen == [1, 2, 3] * 2
    assert result.history["num_trainings"].tolist() == [0, 3, 3]


def test_stalled_looks_at_the_last_gain() -> None:
    when = stalled(min_gain=0.1, max_trainings=4)
    assert [when([1.0]), when([1.0, 0.8]), when([1.0, 0.95]), when([1.0, 1.2])] == [
        False,
        False,
        True,
        True,
    ]
    assert when([4.0, 2.0, 1.0, 0.5])


def test_the_same_seed_gives_the_same_network(blobs: Task) -> None:
    states = []
    for draws in (0, 3):
        torch.manual_seed(draws)
        model = blobs.new_model(seed=0)
        grow(model, blobs, target=Budget(flops=1.5), train=4)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Normalised(nn.Module):
    """A LayerNorm over the first layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
        self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.second(self.norm(self.first(x))).relu())
        return out


class Residual(nn.Module):
    """Two layers whose outputs are added: one width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last((self.a(x) + self.b(x)).relu())
        return out


def task_for(model: Callable[[], nn.Module]) -> Task:
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    return Task.from_arrays(model=model, train=(x, y), validation=(x, y))


def test_groups_that_cannot_grow_exactly_keep_their_width() -> None:
    task = task_for(Normalised)
    result = grow(task.new_model(seed=0), task, target=Budget(params=1.5), train=1)
    assert result.after.widths["first"] == 6
    assert result.after.widths["second"] > 5


@pytest.mark.parametrize("target", [{"b": 12}, {"a": 12, "b": 12}])
def test_a_width_is_that_of_the_group_whichever_producer_names_it(target: dict[str, int]) -> None:
    task = task_for(Residual)
    result = grow(task.new_model(seed=0), task, target=target, train=1, rounds=2)
    assert result.after.widths == {"a": 12}
    assert result.history["width/a"].tolist() == [8, 10, 12]


def test_zeros_that_masks_hold_stay_zeros_in_a_budget(blobs: Task, trained: Trained) -> None:
    model, optimizer = trained()
    graph = trace(model, blobs.example_inputs())
    for name in ("0.weight", "2.weight"):
        weight = model.get_parameter(name)
        keep = weight.abs() > weight.abs().quantile(0.8)
        graph.apply([Mask(name, keep=keep)], optimizer=optimizer)
    result = grow(graph, blobs, target=Budget(nonzero=1.5), train=5, rounds=2, optimizer=optimizer)
    start = result.before.cost.nonzero
    assert start < 0.5 * result.before.cost.params
    nonzero = result.history["nonzero"]
    assert 1.25 * start - 25 < nonzero[1] <= 1.25 * start
    assert 1.5 * start - 25 < nonzero[2] <= 1.5 * start


@pytest.mark.parametrize("criterion", ["even", "gain"])
@pytest.mark.parametrize(
    ("power", "times", "least"),
    [(1, 1.5, 1.4), (2, 6.0, 3.0)],  # no linear model of the latency fits the second
)
def test_a_latency_budget_is_filled_and_kept(
    blobs: Task,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
    criterion: Any,
    power: int,
    times: float,
    least: float,
) -> None:
    def timed(model: nn.Module, inputs: Inputs) -> float:
        # A clock that no other process disturbs.
        return float(1 + (measure(model, inputs).flops / 300) ** power)

    monkeypatch.setattr("dynopt_ray.training.loop.costs_and_metrics.median_ms", timed)
    model, _ = trained()
    target = Budget(latency_ms=times)
    result = grow(model, blobs, target=target, rounds=2, train=2, criterion=criterion)
    latency = result.history["latency_ms"].to_numpy()
    assert least * latency[0] < latency[-1] <= times * latency[0]


@pytest.mark.parametrize("criterion", ["even", "gain"])
def test_a_latency_that_does_not_rise_is_no_budget(
    blobs: Task, trained: Trained, monkeypatch: pytest.MonkeyPatch, criterion: Any
) -> None:
    monkeypatch.setattr("dynopt_ray.training.loop.costs_and_metrics.median_ms", lambda *_: 1.0)
    model, _ = trained()
    with pytest.raises(BudgetError, match="hardly depends on them"):
        grow(model, blobs, target=Budget(latency_ms=1.5), train=2, criterion=criterion)
    assert model.get_parameter("0.weight").shape == (12, 4)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target": Budget(params=0.5)}, BudgetError, r"is below what.*are fractions of the start"),
    ({"target": Budget(params=1.001)}, EditError, "adds nothing"),
    ({"target": Budget(latency_ms=0.5)}, BudgetError, r"is below what.*are fractions of the start"),
    ({"target": {"0": 12}}, EditError, "'0' has 12 units and cannot grow to 12"),
    ({"target": {"0": 14.5}}, EditError, r"'0' has 12 units and cannot grow to 14\.5"),
    ({"target": {"0": True}}, EditError, "'0' has 12 units and cannot grow to True"),
    ({"target": {}}, EditError, "names no group"),
    ({"target": {"zero": 20}}, UnknownNameError, "no width group 'zero'"),
    ({"target": {"4": 20}}, EditError, "'4' cannot be resized"),
    ({"rounds": 0}, ValueError, "rounds is 0"),
    ({"train": 0}, ValueError, "train is 0"),
    ({"train": 2.5}, TypeError, r"train is 2\.5; pass a number of steps or Retraining"),
    ({"rounds": 2.5}, TypeError, r"rounds is 2\.5"),
    ({"target": 2.0}, TypeError, r"target is 2\.0; pass Budget\(params=2\.0\) or \{'0': 64\}"),
    ({"target": Fraction(remove=0.5)}, TypeError, "target is Fraction"),
    ({"when": 3}, TypeError, "when is 3; pass a function of the losses"),
    ({"schedule": 0.1}, TypeError, r"grow: schedule is 0\.1; pass a function of the round"),
    ({"schedule": lambda _: 0.5}, ValueError, "grow: the schedule gives the shares"),
    ({"criterion": "gains"}, UnknownNameError, "no growth criterion 'gains'.*mean 'gain'"),
    ({"criterion": "gain", "target": {"0": 20}}, ValueError, "has nothing to decide"),
    ({"criterion": lambda *_: None}, ValueError, "the criterion gives None; it must give a map"),
    ({"criterion": lambda *_: {"0": 1.0}}, ValueError, "gives None for group '2'"),
    ({"min_gain": float("nan")}, ValueError, "min_gain is nan"),
    ({"min_gain": "a"}, TypeError, "grow: min_gain is 'a'; it must be a number"),
    ({"seed": -1}, ValueError, "seed is -1"),
    ({"init": "clone"}, UnknownNameError, "no way to start new units 'clone'"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_changes(
    blobs: Task, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = blobs.new_model(seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        grow(model, blobs, **{"target": Budget(params=2.0), "train": 2, **options})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "target", "message"),
    [
        (Normalised, {"second": 9, "first": 7}, "'first'.*more units change the output"),
        (Residual, {"a": 12, "b": 10}, r"'b' is to have 10 units.*'a'.* 12"),
    ],
)
def test_widths_are_checked_whole_before_anything_is_trained(
    model: Callable[[], nn.Module], target: dict[str, int], message: str
) -> None:
    task = task_for(model)
    network = task.new_model(seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(EditError, match=message):
        grow(network, task, target=target, train=2, rounds=4)
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_foreign_optimizer_is_refused_before_the_network_is_looked_at(
    blobs: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the network was looked at")

    monkeypatch.setattr(Task, "evaluate", fail)
    foreign = torch.optim.Adam(blobs.new_model(seed=1).parameters())
    with pytest.raises(EditError, match="trains none of this network's parameters"):
        grow(blobs.new_model(seed=0), blobs, target={"0": 20}, train=2, optimizer=foreign)


def test_a_loss_that_diverges_undoes_the_round(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e20)
    with pytest.raises(DivergedError, match="at step 2 of 5") as error:
        grow(model, blobs, target={"0": 20}, train=5, optimizer=optimizer)
    assert error.value.__notes__ == ["The loss diverged in round 1 of 4, which was undone."]
    assert model.get_parameter("0.weight").shape == (12, 4)


def test_step_counts_begin_anew_where_a_parameter_grew(blobs: Task, trained: Trained) -> None:
    model, optimizer = trained()
    before = {name: int(optimizer.state[p]["step"]) for name, p in model.named_parameters()}
    grow(model, blobs, target={"0": 16}, train=3, rounds=2, optimizer=optimizer)
    after = {name: int(optimizer.state[p]["step"]) for name, p in model.named_parameters()}
    grown = {"0.weight", "0.bias", "2.weight"}
    assert after == {n: 3 if n in grown else steps + 6 for n, steps in before.items()}


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "Adamax"])
def test_the_first_step_after_growing_is_no_longer_than_others(blobs: Task, name: str) -> None:
    model, lr = blobs.new_model(seed=0), 1e-3
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=lr)
    blobs.train_steps(model, optimizer, 300, generator=torch.Generator().manual_seed(0))
    before: dict[str, Tensor] = {}

    def remember(*_: object) -> None:
        before.update({name: p.detach().clone() for name, p in model.named_parameters()})

    handle = optimizer.register_step_pre_hook(remember)
    grow(model, blobs, target={"0": 24, "2": 16}, train=1, rounds=1, optimizer=optimizer)
    handle.remove()
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()}
    assert max(moved.values()) < 2 * lr, moved
    assert min(moved.values()) > 1e-3 * lr, moved


def test_radam_does_not_warm_up_again(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    optimizer = torch.optim.RAdam(model.parameters(), lr=0.03)
    blobs.train_steps(model, optimizer, 60, generator=torch.Generator().manual_seed(0))
    before = blobs.evaluate(model).loss
    result = grow(model, blobs, target={"0": 24}, train=20, rounds=1, optimizer=optimizer)
    assert result.after.validation.loss < 0.9 * before
    assert {int(state["step"]) for state in optimizer.state.values()} == {80}
