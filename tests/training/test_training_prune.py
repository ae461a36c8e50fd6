"""Pruning as a whole: targets, rounds, what is kept, the same twice."""

import doctest
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import BudgetError, DivergedError, EditError
from dynopt_ray.schedules import constant, cosine, polynomial
from dynopt_ray.structure import Inputs, Mask, mask_of, measure, trace
from dynopt_ray.tasks import Batch, Metrics, Split, Task, load_task
from dynopt_ray.training import Budget, Fraction, Random, Regrowth, Retraining, Threshold, prune
from tests.training.planted import USEFUL, Fixed

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]


@pytest.mark.parametrize(("granularity", "total"), [("unit", 20), ("weight", 168)])
def test_a_fraction_overall_counts_what_went_in_earlier_rounds(
    blobs: Task, trained: Trained, granularity: Any, total: int
) -> None:
    model, _ = trained()
    result = prune(model, blobs, target=Fraction(remove=0.5), granularity=granularity, rounds=4)
    gone = [math.floor(0.125 * number * total) for number in range(5)]
    assert result.history["num_removed"].cumsum().tolist() == gone


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_the_planted_useless_units_are_found(task: Task, criterion: str) -> None:
    # The planted network has no loss left, hence no gradient; other targets give it one.
    x, y = task.arrays("train")
    shifted = Task.from_arrays(
        model=task.model, train=(x, y + 0.3), validation=(x, y), loss="mse", name="shifted"
    )
    model = shifted.new_model()
    before = model.get_parameter("0.weight").detach().clone()
    prune(model, shifted, target=Fraction(remove=0.5), criterion=criterion, compensate=None)
    assert torch.equal(model.get_parameter("0.weight"), before[list(USEFUL)])


def test_a_budget_is_met_in_rounds_and_each_round_is_told(blobs: Task, trained: Trained) -> None:
    model, optimizer = trained()
    result = prune(
        model,
        blobs,
        target=Budget(flops=0.4),
        rounds=3,
        schedule=polynomial(0.0, num_steps=3, power=3, final=1.0),
        retrain=10,
        optimizer=optimizer,
    )
    history = result.history
    assert history["round"].tolist() == [0, 1, 2, 3]
    start = history["flops"][0]
    for number, share in ((1, 1 - (2 / 3) ** 3), (2, 1 - (1 / 3) ** 3), (3, 1.0)):
        assert history["flops"][number] <= start * (1 - 0.6 * share)
    assert history["flops"].is_monotonic_decreasing
    assert result.after.cost.flops == history["flops"][3]
    assert history["width/0"].tolist()[-1] == result.graph["0"].width == result.after.widths["0"]
    assert history["num_removed"].sum() == 20 - sum(result.after.widths.values())
    assert history.loc[1:, ["cut_loss", "cut_metric", "train_loss"]].notna().all(axis=None)
    assert len(result.receipts) == 3
    assert result.after.validation == blobs.evaluate(model)
    assert result.test == blobs.evaluate(model, "test")
    assert result.after.validation.metric > 0.8
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == parameter.shape


def test_test_data_are_touched_once_and_decide_nothing(
    blobs: Task, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[str] = []
    evaluate, batches = Task.evaluate, Task.batches

    def noted_evaluate(task: Task, model: nn.Module, split: Split = "validation") -> Metrics:
        splits.append(split)
        return evaluate(task, model, split)

    def noted_batches(task: Task, split: Split, *args: Any, **options: Any) -> Iterator[Batch]:
        splits.append(split)
        return batches(task, split, *args, **options)

    monkeypatch.setattr(Task, "evaluate", noted_evaluate)
    monkeypatch.setattr(Task, "batches", noted_batches)
    model, optimizer = trained()
    prune(model, blobs, target=Budget(flops=0.5), rounds=2, retrain=5, optimizer=optimizer)
    assert splits.count("test") == 1
    assert splits[-1] == "test"


@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_the_same_seed_gives_the_same_network_whatever_the_process_drew_before(
    blobs: Task, trained: Trained, granularity: Any
) -> None:
    states = []
    for draws in (0, 7):
        model, optimizer = trained()
        torch.manual_seed(draws)
        torch.rand(draws)
        before = torch.get_rng_state()
        options: dict[str, Any] = {"target": Fraction(remove=0.5), "granularity": granularity}
        options |= {"criterion": "taylor", "retrain": 15, "rounds": 2, "optimizer": optimizer}
        result = prune(model, blobs, **options)
        assert torch.equal(before, torch.get_rng_state())
        states.append((model.state_dict(), result.history.drop(columns="duration_s")))
    assert all(torch.equal(states[0][0][k], states[1][0][k]) for k in states[0][0])
    assert states[0][1].equals(states[1][1])


def test_masked_weights_stay_masked_through_all_rounds(blobs: Task, trained: Trained) -> None:
    model, optimizer = trained()
    result = prune(
        model,
        blobs,
        target=Fraction(remove=0.8),
        granularity="weight",
        scope="layer",
        rounds=3,
        retrain=10,
        optimizer=optimizer,
    )
    blobs.train_steps(model, optimizer, 5)
    for name in ("0.weight", "2.weight", "4.weight"):
        parameter = model.get_parameter(name)
        keep = mask_of(parameter)
        assert keep is not None
        assert int((~keep).sum()) == math.floor(0.8 * parameter.numel())
        assert not parameter[~keep].any()
        assert not optimizer.state[parameter]["exp_avg"][~keep].any()
    assert result.history["nonzero"].is_monotonic_decreasing
    assert result.after.widths == result.before.widths


def test_compensation_helps_right_after_the_cut(blobs: Task, trained: Trained) -> None:
    losses = {}
    for compensate in (None, True, False, [blobs.arrays("train")[0]], blobs.arrays("train")[0]):
        model, _ = trained()
        result = prune(model, blobs, target=Budget(flops=0.3), compensate=compensate)
        losses[str(type(compensate)) + str(compensate is True)] = result.after.validation.loss
    plain, refitted, *rest = losses.values()
    assert refitted < plain
    assert rest == pytest.approx([plain, refitted, refitted][-len(rest) :], rel=0.05)


def test_retraining_that_makes_it_worse_is_rolled_back(blobs: Task, trained: Trained) -> None:
    plain, _ = trained()
    expected = prune(plain, blobs, target=Budget(flops=0.5))
    model, _ = trained()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = prune(
        model,
        blobs,
        target=Budget(flops=0.5),
        retrain=Retraining(3, constant(30.0)),
        optimizer=optimizer,
    )
    assert result.history["trained_kept"].tolist()[1] is False
    assert result.after.validation == expected.after.validation
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_without_an_optimizer_adam_retrains(blobs: Task, trained: Trained) -> None:
    model, _ = trained()
    twin, _ = trained()
    adam = torch.optim.Adam(twin.parameters(), lr=1e-3)
    options: dict[str, Any] = {"target": Budget(flops=0.5), "retrain": 5}
    prune(model, blobs, **options)
    prune(twin, blobs, optimizer=adam, **options)
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


def test_the_learning_rate_within_a_retraining_follows_its_schedule(
    blobs: Task, trained: Trained
) -> None:
    model, optimizer = trained()
    rates: list[float] = []
    optimizer.register_step_post_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    prune(
        model,
        blobs,
        target=Budget(flops=0.5),
        rounds=2,
        retrain=Retraining(4, cosine(0.01, num_steps=4)),
        optimizer=optimizer,
    )
    assert rates == [cosine(0.01, num_steps=4)(step) for step in (0, 1, 2, 3)] * 2
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert "initial_lr" not in optimizer.param_groups[0]


def test_a_graph_is_taken_with_what_its_caller_fixed(blobs: Task, trained: Trained) -> None:
    model, _ = trained()
    graph = trace(model, blobs.example_inputs(), fixed=["0"])
    result = prune(graph, blobs, target=Fraction(remove=0.5))
    assert result.graph is graph
    assert model.get_parameter("0.weight").shape == (12, 4)
    assert result.after.widths == {"2": 4}


def test_undoing_all_receipts_gives_back_the_network(blobs: Task, trained: Trained) -> None:
    model, _ = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = prune(model, blobs, target=Budget(flops=0.3), rounds=2)
    for receipt in reversed(result.receipts):
        receipt.undo()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_threshold_may_wait_for_rounds_that_train(blobs: Task, trained: Trained) -> None:
    model, optimizer = trained()
    options: dict[str, Any] = {"rounds": 2, "retrain": 2, "optimizer": optimizer}
    result = prune(model, blobs, target=Threshold(1e-9), **options)
    assert result.history["num_removed"].tolist() == [0, 0, 0]
    assert result.receipts == ()


def test_counts_may_be_numpy_integers(blobs: Task, trained: Trained) -> None:
    model, optimizer = trained()
    options: dict[str, Any] = {"rounds": np.int64(2), "retrain": np.int64(3)}
    result = prune(model, blobs, target=Budget(flops=0.5), optimizer=optimizer, **options)
    assert len(result.history) == 3


def test_a_foreign_optimizer_is_refused_before_the_network_is_looked_at(
    blobs: Task, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the network was looked at")

    monkeypatch.setattr(Task, "evaluate", fail)
    foreign = torch.optim.Adam(blobs.new_model(seed=1).parameters())
    with pytest.raises(EditError, match="trains none of this network's parameters"):
        prune(trained()[0], blobs, target=Budget(flops=0.5), retrain=5, optimizer=foreign)


def test_a_latency_budget_is_met_by_measuring(
    blobs: Task, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(model: nn.Module, inputs: Inputs) -> float:
        return measure(model, inputs).params / 100  # a clock that no other process disturbs

    monkeypatch.setattr("dynopt_ray.training.loop.costs_and_metrics.median_ms", timed)
    model, _ = trained()
    result = prune(model, blobs, target=Budget(latency_ms=0.6, flops=0.7))
    latency, flops = result.history["latency_ms"], result.history["flops"]
    assert 0.45 * latency[0] < latency[1] <= 0.6 * latency[0]
    assert flops[1] <= 0.7 * flops[0]
    with pytest.raises(BudgetError, match=r"lowest reachable latency_ms is .* every group is at"):
        prune(trained()[0], blobs, target=Budget.absolute(latency_ms=0.01))


def test_a_loss_that_diverges_names_step_and_round_and_undoes_the_round(
    blobs: Task, trained: Trained
) -> None:
    model, _ = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e20)
    with pytest.raises(DivergedError, match="at step 2 of 9") as error:
        prune(model, blobs, target=Budget(flops=0.5), retrain=9, optimizer=optimizer)
    assert error.value.__notes__ == ["The loss diverged in round 1 of 1, which was undone."]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_round_that_diverges_leaves_the_optimizer_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=generator)
    y = x @ torch.randn(8, 1, generator=generator)
    task = Task.from_arrays(
        model=lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)),
        train=(x[:200], y[:200]),
        validation=(x[200:], y[200:]),
        loss="mse",
    )
    model = task.new_model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    task.train_steps(model, optimizer, 20)
    before = {p: state["momentum_buffer"].clone() for p, state in optimizer.state.items()}
    retrain = Retraining(200, constant(1.0))
    with pytest.raises(DivergedError, match=r"at step \d+ of 200"):
        prune(model, task, target=Fraction(remove=0.5), retrain=retrain, optimizer=optimizer)
    assert before.keys() == optimizer.state.keys()
    for parameter, momentum in before.items():
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum)


@pytest.mark.parametrize("recovery", [None, Random(share=0.2), Regrowth(share=0.2)])
def test_masks_may_lie_in_memory_as_their_weights_do(recovery: Any) -> None:
    task = load_task("digits-cnn", {"channels": [6, 8], "hidden": 16})
    model = task.new_model(0)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    graph = trace(model, task.example_inputs())
    weight = max((p for p in model.parameters() if p.ndim == 4), key=Tensor.numel)
    name = next(name for name, p in model.named_parameters() if p is weight)
    before = weight.abs() > 0.05
    graph.apply([Mask(name, keep=before)])
    target = Fraction(remove=0.9)
    prune(graph, task, target=target, granularity="weight", recovery=recovery)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert int((weight != 0).sum()) < int(before.sum())


def test_nan_weights_are_refused(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    nn.init.constant_(model.get_parameter("2.bias"), torch.nan)
    with pytest.raises(DivergedError, match="loss over 100 rows is nan"):
        prune(model, blobs, target=Budget(flops=0.5))


def test_the_least_important_weights_of_a_fixed_ranking_go(task: Task) -> None:
    model = task.new_model()
    scores = {
        n: torch.arange(p.numel()).reshape(p.shape) + 1.0 for n, p in model.named_parameters()
    }
    prune(
        model,
        task,
        target=Fraction(remove=0.5),
        criterion=Fixed({}, scores),
        granularity="weight",
        scope="layer",
    )
    keep = mask_of(model.get_parameter("0.weight"))
    assert keep is not None
    assert keep.flatten().tolist() == [False] * 12 + [True] * 12


@pytest.mark.parametrize(
    "module", ["loop.snapshot", "loop.attempts", "pruning.pruner", "growing.grower"]
)
def test_the_examples_in_docstrings_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"dynopt_ray.training.{module}"))
    assert results.attempted
    assert not results.failed


def test_a_latency_that_every_measurement_exceeds_is_refused(
    blobs: Task, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = trained()
    start = measure(model, blobs.example_inputs()).params

    def timed(model: nn.Module, inputs: Inputs) -> float:
        # Whatever is removed, the network is a little slower than it may be.
        now = measure(model, inputs).params
        return float(start if now == start else 0.9 * start * 1.02)

    def fitted(*_: object, **__: object) -> Callable[[Mapping[str, int]], float]:
        return lambda widths: float(sum(widths.values()))

    monkeypatch.setattr("dynopt_ray.training.loop.costs_and_metrics.median_ms", timed)
    monkeypatch.setattr("dynopt_ray.training.loop.costs_and_metrics.fit_latency", fitted)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BudgetError, match=r"all 5 choices of widths .* above the limit of .* ms"):
        prune(model, blobs, target=Budget(latency_ms=0.9), rounds=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
