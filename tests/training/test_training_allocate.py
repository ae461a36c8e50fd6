"""Widths that meet a budget: as good as the best of all, or nearly, and known where they can be."""

import doctest
import importlib
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import BudgetError, EditError, UnknownNameError
from dynopt_ray.structure import Graph, Inputs, measure, trace
from dynopt_ray.tasks import Metrics, Task
from dynopt_ray.training import Budget, Costs, allocate, prune, sensitivity
from dynopt_ray.training.allocation.curves import Curve
from dynopt_ray.training.allocation.knapsack import Knapsack
from tests.training.test_training_widths import Aligned

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]
Points = Mapping[str, Mapping[int, float]]
"""Group name -> width -> loss."""

X, Y = torch.zeros(8, 4), torch.arange(8) % 3
TINY = Task.from_arrays(model=nn.Identity, train=(X, Y), validation=(X, Y))


class Branches(nn.Module):
    """Two groups of 10 units that cost 8 parameters each and do not share any."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 10), nn.Linear(4, 10)
        self.from_a, self.from_b = nn.Linear(10, 3, bias=False), nn.Linear(10, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.from_a(self.a(x).relu()) + self.from_b(self.b(x).relu())
        return y


def table_of(points: Points) -> pd.DataFrame:
    rows = [(name, width, loss) for name in points for width, loss in points[name].items()]
    return pd.DataFrame(rows, columns=["group", "width", "loss"])


def branches(a: Mapping[int, float], b: Mapping[int, float], num_units: int, **options: Any) -> Any:
    """The widths of the two branches that share so many units."""
    budget = Budget.absolute(params=8 * num_units)
    return allocate(Branches(), TINY, budget, curves=table_of({"a": a, "b": b}), **options)


def test_where_costs_are_alike_the_flattest_pieces_go_first() -> None:
    # Convex, slopes per unit: a 0.01 to 6, then 0.05; b 0.02 to 4, then 0.1.
    a, b = {10: 0.5, 6: 0.54, 2: 0.74}, {10: 0.5, 4: 0.62, 1: 0.92}
    expected = {18: (8, 10), 16: (6, 10), 13: (6, 7), 10: (6, 4), 9: (5, 4), 6: (2, 4), 4: (2, 2)}
    for num_units, widths in expected.items():
        assert branches(a, b, num_units) == dict(zip("ab", widths, strict=True))


def test_a_steep_piece_does_not_hide_the_flat_one_behind_it() -> None:
    # The first unit of a costs 0.5 and no more come with the others; each of b costs 0.1.
    a, b = {10: 0.0, 9: 0.5, 1: 0.5}, {10: 0.0, 1: 0.9}
    assert branches(a, b, 12) == {"a": 2, "b": 10}
    assert branches(a, b, 17) == {"a": 10, "b": 7}


def test_a_loss_that_falls_as_units_go_is_noise() -> None:
    # What b seems to gain does not pay for units of a.
    assert branches({10: 1.0, 5: 1.1}, {10: 1.0, 5: 0.2, 2: 1.02}, 15) == {"a": 10, "b": 5}
    assert branches({10: 1.0, 5: 1.1}, {10: 1.0, 5: 0.2, 2: 1.02}, 12) == {"a": 10, "b": 2}


def test_costs_count_beside_losses() -> None:
    # A unit of "0" costs 25 parameters and a loss of 0.016, one of "2" only 14 and 0.01.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 20), nn.ReLU())
    model.append(nn.Linear(20, 3))
    curves = table_of({"0": {10: 0.0, 5: 0.08}, "2": {20: 0.0, 15: 0.05}})
    assert allocate(model, TINY, Budget(params=0.8), curves=curves) == {"0": 7, "2": 20}


def chain(widths: list[int], *, is_convolution: bool) -> tuple[Graph, Task]:
    """Layers one behind the other: costs are products of neighbouring widths."""
    x = torch.zeros(8, 2, 5, 5) if is_convolution else X
    layers: list[nn.Module] = []
    for before, width in itertools.pairwise([x.shape[1], *widths]):
        layers += [nn.Conv2d(before, width, 3) if is_convolution else nn.Linear(before, width)]
        layers += [nn.ReLU()]
    layers = [nn.ZeroPad2d(4), *layers, nn.AdaptiveAvgPool2d(1)] if is_convolution else layers
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1], 3))
    task = Task.from_arrays(model=nn.Identity, train=(x, Y), validation=(x, Y))
    return trace(model, x[:2]), task


def drawn(graph: Graph, rng: np.random.Generator, *, is_smooth: bool) -> Points:
    """Losses at up to six widths of each group: a noisy power of the width, or any rising ones."""
    points = {}
    for name, width in graph.widths.items():
        widths = sorted({width, *rng.integers(1, width, 5).tolist()}, reverse=True)
        if is_smooth:
            steepness = rng.uniform(0.5, 2)
            losses = [(width / w) ** steepness * rng.uniform(0.9, 1.1) for w in widths]
            losses[0] = 1.0
        else:
            losses = [0.0, *rng.random(len(widths) - 1)]
        points[name] = dict(zip(widths, np.maximum.accumulate(losses).tolist(), strict=True))
    return points


def loss_of(points: Points, widths: Mapping[str, int]) -> float:
    """The sum of the increases, interpolated."""
    total = 0.0
    for name, curve in points.items():
        xs = sorted(curve)
        total += float(np.interp(widths[name], xs, [curve[x] for x in xs])) - curve[xs[-1]]
    return total


def losses_below(
    limit: float, points: Points, ranges: Sequence[range]
) -> Iterator[tuple[tuple[int, ...], float]]:
    """The choices of widths with less loss than a limit, and their losses, least first."""
    increases = [
        {width: loss_of({name: curve}, {name: width}) for width in widths}
        for (name, curve), widths in zip(points.items(), ranges, strict=True)
    ]
    losses = {
        choice: sum(map(dict.__getitem__, increases, choice))
        for choice in itertools.product(*ranges)
    }
    return iter(sorted((item for item in losses.items() if item[1] < limit), key=itemgetter(1)))


def excess(seed: int, *, is_smooth: bool) -> float:
    """How much more loss the widths of a drawn problem have than the best, relatively."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(6, 17, rng.integers(2, 4)).tolist()
    graph, task = chain(widths, is_convolution=bool(rng.integers(2)))
    points, costs = drawn(graph, rng, is_smooth=is_smooth), Costs(graph, task.example_inputs())
    kind: Any = ["flops", "params"][rng.integers(2)]
    lowest = getattr(costs.at({name: min(curve) for name, curve in points.items()}), kind)
    limit = lowest + rng.uniform(0.02, 0.95) * (getattr(costs.now(), kind) - lowest)
    found = allocate(graph, task, Budget.absolute(**{kind: limit}), curves=table_of(points))
    assert getattr(costs.at(found), kind) <= limit
    # The least loss of all widths that fit: only lower ones than the loss found matter.
    loss = loss_of(points, found)
    ranges = [range(min(points[name]), width + 1) for name, width in graph.widths.items()]
    for choice, best in losses_below(loss, points, ranges):
        if getattr(costs.at(dict(zip(points, choice, strict=True))), kind) <= limit:
            return loss / max(best, 1e-9) - 1
    return 0.0


@pytest.mark.parametrize("is_smooth", [True, False])
def test_no_widths_are_much_better(is_smooth: bool) -> None:
    excesses = np.array([excess(seed, is_smooth=is_smooth) for seed in range(60)])
    assert np.mean(excesses < 1e-9) >= 0.97
    assert np.mean(excesses < 0.01) >= 0.98
    assert excesses.max() < 0.05


def test_what_is_predicted_is_measured_and_pruned(blobs: Task, trained: Trained) -> None:
    model, _ = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    widths = allocate(model, blobs, Budget(flops=0.5), seed=1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    curves = sensitivity(model, blobs, seed=1)
    assert widths == allocate(model, blobs, Budget(flops=0.5), curves=curves)
    result = prune(model, blobs, target=widths)
    assert result.after.widths == widths
    assert result.after.cost.flops <= 0.5 * result.before.cost.flops
    # No group could keep one unit more.
    costs = Costs(trace(model, blobs.example_inputs()), blobs.example_inputs())
    for name, width in widths.items():
        if width < result.before.widths[name]:
            assert costs.at({name: width + 1}).flops > 0.5 * result.before.cost.flops


def test_the_seed_decides_what_is_measured(trained: Trained) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 4, generator=generator)
    y = torch.randint(3, (6000,), generator=generator)  # nothing to learn: all is noise
    task = Task.from_arrays(
        model=nn.Identity, train=(x, y), validation=(x[:300], y[:300]), batch_size=1000
    )
    model, _ = trained()
    widths = [allocate(model, task, Budget(flops=0.6), seed=seed) for seed in (2, 2, 3, 4, 5)]
    assert widths[0] == widths[1]
    assert len({tuple(found.items()) for found in widths}) > 1


def test_curves_may_come_from_a_file(blobs: Task, trained: Trained) -> None:
    model, _ = trained()
    curves = sensitivity(model, blobs)
    read = pd.read_csv(io.StringIO(curves.to_csv(index=False)))
    assert read["group"].dtype != curves["group"].dtype  # "0" has become a number
    budget = Budget(params=0.4)
    assert allocate(model, blobs, budget, curves=read) == allocate(
        model, blobs, budget, curves=curves
    )


def test_all_limits_hold() -> None:
    graph, task = chain([12, 10], is_convolution=True)
    curves = table_of({"1": {12: 0.0, 2: 1.0}, "3": {10: 0.0, 2: 0.1}})
    costs = Costs(graph, task.example_inputs())
    both = allocate(graph, task, Budget(flops=0.4, params=0.5), curves=curves)
    alone = allocate(graph, task, Budget(flops=0.4), curves=curves)
    start, cost = costs.now(), costs.at(both)
    assert cost.flops <= 0.4 * start.flops
    assert cost.params <= 0.5 * start.params
    assert alone == both
    tight = costs.at(allocate(graph, task, Budget(flops=0.4, bytes=0.2), curves=curves))
    assert 0.15 * start.bytes < tight.bytes <= 0.2 * start.bytes


def test_a_latency_is_that_of_a_model_that_gives_what_was_measured_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, task = chain([12, 10], is_convolution=True)

    def timed(model: nn.Module, inputs: Inputs) -> float:
        cost = measure(model, inputs)  # a clock that no other process disturbs
        return cost.flops / (1000 if cost.params == graph.cost().params else 2000)

    monkeypatch.setattr("dynopt_ray.training.loop.costs_and_metrics.median_ms", timed)
    curves = table_of({"1": {12: 0.0, 2: 1.0}, "3": {10: 0.0, 2: 0.5}})
    by_latency = allocate(graph, task, Budget(latency_ms=0.4), curves=curves)
    assert by_latency == allocate(graph, task, Budget(flops=0.4), curves=curves)


def test_least_widths_and_groups_without_a_curve_are_kept() -> None:
    steep, flat = {10: 0.0, 1: 9.0}, {10: 0.0, 1: 0.1}
    assert branches(steep, flat, 14, min_widths={"b": 6}) == {"a": 8, "b": 6}
    only = table_of({"a": steep})
    budget = Budget.absolute(params=8 * 14)
    assert allocate(Branches(), TINY, budget, curves=only) == {"a": 4, "b": 10}


def test_groups_go_in_their_steps() -> None:
    curves = table_of({"up": {12: 0.0, 4: 1.0}})
    assert allocate(Aligned(), TINY, Budget(params=0.9), curves=curves) == {"up": 8}
    with pytest.raises(BudgetError, match=r"'up' \(8\)"):
        allocate(Aligned(), TINY, Budget(params=0.5), curves=curves, min_widths={"up": 5})


def test_a_budget_out_of_reach_names_the_lowest_cost_and_the_groups() -> None:
    with pytest.raises(BudgetError, match="cannot be met") as error:
        branches({10: 0.0, 3: 1.0}, {10: 0.0, 5: 1.0}, 7)
    message = str(error.value)
    assert "the lowest reachable params is 64 (0.4 of the start), above the limit of 56" in message
    assert "hold most of what is left are 'b' (5), 'a' (3); measure larger fractions" in message


def test_a_budget_that_no_curve_could_meet_is_refused_before_any_is_measured(
    blobs: Task, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Metrics:
        raise AssertionError("the network was evaluated")

    monkeypatch.setattr(Task, "evaluate", fail)
    with pytest.raises(BudgetError, match=r"lowest reachable flops is .* '0' \(1\)"):
        allocate(trained()[0], blobs, Budget(flops=0.01))


CURVES = table_of({"0": {12: 0.1, 3: 0.9}, "2": {8: 0.1, 2: 0.3}})
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"task": None}, TypeError, "allocate: task is None; pass a Task"),
    ({"budget": 0.5}, TypeError, r"budget is 0\.5; pass Budget"),
    ({"budget": Budget(nonzero=0.5)}, ValueError, "limits nonzero, which depends on the units"),
    (
        {"budget": Budget(flops=1.0)},
        EditError,
        "already, with .* Lower the budget; .* Budget.absolute",
    ),
    ({"min_widths": ["0"]}, TypeError, r"allocate: min_widths is \['0'\]"),
    ({"min_widths": {"0": 13}}, EditError, "has 12 units, so it cannot keep at least 13"),
    ({"min_widths": {"1": 2}}, UnknownNameError, "no width group '1'"),
    ({"curves": {"0": [1]}}, TypeError, "curves has no column 'group'; pass what sensitivity"),
    ({"curves": table_of({"O": {12: 0.1}})}, UnknownNameError, "no width group 'O'"),
    ({"curves": table_of({"4": {3: 0.1}})}, EditError, "'4' cannot be resized"),
    (
        {"curves": table_of({"0": {16: 0.1, 8: 0.2}})},
        EditError,
        "'0' had 16 units when it was measured, but has 12 now; call sensitivity again",
    ),
    (
        {"curves": table_of({"0": {12: 0.1, 6: float("nan")}})},
        ValueError,
        "a loss of '0' is not finite",
    ),
    ({"curves": CURVES[:0]}, ValueError, "there are no rows; pass what sensitivity returns"),
    (
        {"budget": Budget(flops=0.3), "min_widths": {"0": 11, "2": 7}},
        BudgetError,
        r"every group is at its minimum width.* '2' \(7\)\.$",  # measuring more would not help
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_cannot_be_done_is_refused(
    blobs: Task, trained: Trained, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = {"task": blobs, "budget": Budget(flops=0.5), "curves": CURVES, **options}
    with pytest.raises(error, match=message):
        allocate(trained()[0], **options)


def test_the_example_in_the_docstring_runs() -> None:
    results = doctest.testmod(importlib.import_module("dynopt_ray.training.allocation.allocator"))
    assert results.attempted
    assert not results.failed


def test_a_predicted_cost_that_never_falls_is_named() -> None:
    """The latency model of a small network may predict that nothing gets faster."""
    curve = Curve((4, 8), np.array([0.2, 0.0]), (4, 8))
    knapsack = Knapsack({"0": curve}, {"latency_ms": 1.0}, lambda _: {"latency_ms": 2.0})
    with pytest.raises(BudgetError, match=r"no narrower width lowers latency_ms.* \{'0': 8\} is"):
        knapsack.solved({"0": 8})
