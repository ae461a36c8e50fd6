"""What pruning and growing take from each layer, worked out by hand."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.criteria import Scope
from dynopt_ray.errors import EditError
from dynopt_ray.schedules import constant
from dynopt_ray.structure import Cost, Graph, Mask, mask_of, trace
from dynopt_ray.tasks import Task
from dynopt_ray.training import (
    Budget,
    Costs,
    Fraction,
    Random,
    Regrowth,
    Retraining,
    Threshold,
    grow,
    prune,
)
from tests.training.planted import Fixed

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]


def layers(*sizes: int, bias: bool = False) -> nn.Sequential:
    """Linear layers of these sizes, one after the other."""
    pairs = itertools.pairwise(sizes)
    return nn.Sequential(*(nn.Linear(one, other, bias=bias) for one, other in pairs))


def task_of(model: Callable[[], nn.Module], num_inputs: int, num_outputs: int) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, num_inputs, generator=generator)
    y = torch.randn(40, num_outputs, generator=generator)
    return Task.from_arrays(model=model, train=(x, y), validation=(x, y), loss="mse")


@dataclass(frozen=True)
class Comparing(Fixed):
    """Scores that mean the same in every layer."""

    compares_across = True


# Four scores 1 … 4 of one layer and sixteen 1 … 16 of another; ten of the twenty shall go.
#   by length (5.48, 38.7): 1/5.48 = 0.183 lies between 7/38.7 and 8/38.7: 1 and 9 go
#   by mean (2.5, 8.5):     2/2.5 = 0.8 lies between 6/8.5 and 7/8.5: 2 and 8 go
#   as they are:            1, 2, 3 of each, then 4 … 7 of the second, as one of each stays
_FOUR = torch.arange(1.0, 5.0)
_SIXTEEN = torch.arange(1.0, 17.0)


@pytest.mark.parametrize(
    ("kind", "scope", "gone"),
    [
        (Fixed, "global", [1, 9]),
        (Comparing, "global", [3, 7]),
        (Fixed, "layer", [2, 8]),
        (Comparing, "layer", [2, 8]),
    ],
)
def test_weights_of_layers_compare_by_the_length_of_their_scores(
    kind: Callable[..., Any], scope: Scope, gone: list[int]
) -> None:
    task = task_of(lambda: layers(1, 4, 4), 1, 4)
    model = task.new_model(seed=0)
    scores = {"0.weight": _FOUR.reshape(4, 1), "1.weight": _SIXTEEN.reshape(4, 4)}
    prune(
        model,
        task,
        target=Fraction(remove=0.5),
        criterion=kind({}, scores),
        granularity="weight",
        scope=scope,
        compensate=None,
    )
    for name, number in zip(scores, gone, strict=True):
        keep = mask_of(model.get_parameter(name))
        assert keep is not None
        assert keep.flatten().tolist() == [False] * number + [True] * (keep.numel() - number)


@pytest.mark.parametrize(
    ("kind", "gone"), [(Fixed, {"0": 2, "1": 8}), (Comparing, {"0": 3, "1": 7})]
)
def test_units_of_groups_compare_by_the_mean_of_their_scores(
    kind: Callable[..., Any], gone: Mapping[str, int]
) -> None:
    task = task_of(lambda: layers(1, 4, 16, 1), 1, 1)
    criterion = kind({"0": _FOUR, "1": _SIXTEEN}, {})
    result = prune(task.new_model(seed=0), task, target=Fraction(remove=0.5), criterion=criterion)
    assert result.after.widths == {"0": 4 - gone["0"], "1": 16 - gone["1"]}


@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_a_threshold_leaves_what_is_equal_to_it(granularity: Any) -> None:
    task = task_of(lambda: layers(1, 4, 1), 1, 1)
    model = task.new_model(seed=0)
    ones = {"0.weight": torch.ones(4, 1), "1.weight": torch.ones(1, 4)}
    ones["0.weight"][:2] = 0.5
    ones["0.weight"][2] = 0.25
    criterion = Fixed({"0": torch.tensor([0.5, 1.0, 0.25, 0.5])}, ones)
    target = Threshold(0.5)
    options: dict[str, Any] = {"criterion": criterion, "granularity": granularity}
    result = prune(model, task, target=target, compensate=None, **options)
    assert result.history["num_removed"].tolist() == [0, 1]
    with pytest.raises(EditError, match=r"the smallest score .* that may go is 0\.25"):
        prune(task.new_model(seed=0), task, target=Threshold(0.25), **options)


def test_a_threshold_rises_to_its_value_by_rounds() -> None:
    task = task_of(lambda: layers(1, 8, 1), 1, 1)
    scores = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5])

    @dataclass(frozen=True)
    class Staying(Fixed):
        """The highest scores of the units that are left."""

        def score_units(self, evidence: Any) -> dict[str, Tensor]:
            return {g.name: self.units[g.name][-g.width :] for g in evidence.graph}

    result = prune(
        task.new_model(seed=0),
        task,
        target=Threshold(1.0),
        criterion=Staying({"0": scores}, {}),
        rounds=2,
    )
    # Those below 0.5, then those below 1.
    assert result.history["num_removed"].tolist() == [0, 2, 3]


def test_a_retraining_that_is_refused_leaves_all_later_choices_as_they_were(
    blobs: Task, trained: Trained
) -> None:
    """Rolled back are the draws, too: the next round takes back the same units at random."""
    outcomes = []
    for retrain in (None, Retraining(3, constant(30.0))):
        model, optimizer = trained()
        result = prune(
            model,
            blobs,
            target=Fraction(remove=0.6),
            rounds=3,
            recovery=Random(share=0.5),
            retrain=retrain,
            optimizer=optimizer,
        )
        if retrain is not None:
            assert result.history["trained_kept"].tolist()[1:] == [False] * 3
        assert result.history["num_returned"].sum() > 3
        outcomes.append(model.state_dict())
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


def test_each_layer_regrows_a_part_of_what_this_cut_took() -> None:
    task = task_of(lambda: layers(5, 4, 5), 5, 5)
    model = task.new_model(seed=0)
    graph = trace(model, task.example_inputs())
    scores = {name: torch.arange(20.0).reshape(w.shape) + 1 for name, w in model.named_parameters()}
    half = torch.arange(20).reshape(4, 5) >= 10
    graph.apply(Mask("0.weight", keep=half))
    prune(
        graph,
        task,
        target=Fraction(remove=0.75),
        criterion=Fixed({}, scores),
        granularity="weight",
        scope="layer",
        recovery=Regrowth(share=0.3),
        compensate=None,
    )
    # Of each 20 weights 15 shall go, 10 are gone. Of the 10 that stay in all, 3 are exchanged:
    # 23 go, 7 of the first (a tie) and 16 of the second, and 7/23 and 16/23 of 3 come back.
    found = [int((~mask).sum()) for p in model.parameters() if (mask := mask_of(p)) is not None]
    assert found == [10 + 7 - 1, 16 - 2]


def _grown(target: Budget, *sizes: int) -> tuple[Graph, dict[str, int]]:
    task = task_of(lambda: layers(*sizes, bias=True), sizes[0], sizes[-1])
    result = grow(task.new_model(seed=0), task, target=target, train=1, rounds=1)
    return result.graph, dict(result.after.widths)


@pytest.mark.parametrize(
    ("limit", "widths"),
    [
        # 4 → a → b → 2 has 5a + (a + 1)b + 2(b + 1) parameters: 86 at 6 and 6.
        (94, None),
        (95, {"0": 6, "1": 7}),
        (96, {"0": 6, "1": 7}),
        (97, {"0": 7, "1": 6}),
        (106, {"0": 7, "1": 6}),
        (107, {"0": 7, "1": 7}),
        (117, {"0": 7, "1": 8}),
        (118, {"0": 7, "1": 8}),
        (119, {"0": 8, "1": 7}),
        (130, {"0": 8, "1": 8}),
    ],
)
def test_groups_of_equal_width_take_what_is_left_one_by_one(
    limit: int, widths: dict[str, int] | None
) -> None:
    if widths is None:
        with pytest.raises(EditError, match="no group has room for another unit"):
            _grown(Budget.absolute(params=limit), 4, 6, 6, 2)
        return
    graph, found = _grown(Budget.absolute(params=limit), 4, 6, 6, 2)
    assert found == widths
    assert graph.cost().params <= limit


@pytest.mark.parametrize(
    ("limit", "widths"),
    [
        # 4 → a → b → 2 from 4 and 10: up to half as wide there is 5 and 14, which has 139.
        (146, {"0": 5, "1": 14}),
        (147, {"0": 5, "1": 15}),
        (157, {"0": 5, "1": 15}),
        (158, {"0": 6, "1": 14}),  # the first has grown by less until then, so it comes first
        (167, {"0": 6, "1": 15}),
    ],
)
def test_what_is_left_goes_to_the_group_that_has_grown_least(
    limit: int, widths: dict[str, int]
) -> None:
    assert _grown(Budget.absolute(params=limit), 4, 4, 10, 2)[1] == widths


@pytest.mark.parametrize("params", [1.3, 1.7, 2.2, 3.1, 60.0])
@pytest.mark.parametrize("sizes", [(4, 6, 6, 2), (3, 5, 11, 4), (2, 10, 3, 7, 2)])
def test_a_grown_network_has_no_room_for_a_unit_more(sizes: tuple[int, ...], params: float) -> None:
    task = task_of(lambda: layers(*sizes, bias=True), sizes[0], sizes[-1])
    graph, widths = _grown(Budget(params=params), *sizes)
    costs = Costs(graph, task.example_inputs())
    limit = params * _params(*sizes)
    assert costs.at(widths).params <= limit
    for name in widths:
        assert costs.at({**widths, name: widths[name] + 1}).params > limit


def _params(*sizes: int) -> int:
    return sum((one + 1) * other for one, other in itertools.pairwise(sizes))


def test_limits_of_a_budget_by_hand() -> None:
    start = Cost(params=100, nonzero=80, flops=1000, bytes=400, latency_ms=None)
    assert Budget(params=0.5, flops=0.1).limits(start) == {"params": 50.0, "flops": 100.0}
    assert Budget(params=0.5).limits(start, 0.25) == {"params": 87.5}
    assert Budget.absolute(nonzero=20).limits(start, 0.5) == {"nonzero": 50.0}
    assert Budget.absolute(nonzero=20).limits(start) == {"nonzero": 20}
    measured = replace(start, latency_ms=4.0)
    assert Budget.absolute(latency_ms=1.0).limits(measured, 0.5) == {"latency_ms": 2.5}
    assert Budget.absolute(latency_ms=1.0).limits(start) == {"latency_ms": 1.0}
    for budget in (Budget(latency_ms=0.5), Budget.absolute(latency_ms=1.0)):
        with pytest.raises(ValueError, match="a latency that was not measured"):
            budget.limits(start, 0.5)
