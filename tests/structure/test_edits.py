"""Edits against references: grown = old, shrunk = masked, a step after = one on the masked."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynopt_ray.errors import CheckpointError, EditError
from dynopt_ray.structure import Grow, Mask, Shrink, load, mask_of, save, trace
from tests.structure.editing import (
    every_second,
    silence,
    step,
)
from tests.structure.zoo import NETWORKS, trained


@pytest.mark.parametrize("init", ["fresh", "split"])
@pytest.mark.parametrize("name", NETWORKS)
def test_growth_keeps_the_output(name: str, init: Any) -> None:
    model, inputs = trained(name)
    before = model(inputs)
    graph = trace(model, inputs)
    graph.apply([Grow(group.name, units=3, init=init) for group in graph])
    assert graph.widths == {n: w + 3 for n, w in NETWORKS[name].widths.items()}
    torch.testing.assert_close(model(inputs), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["fresh", "split"])
@pytest.mark.parametrize("name", NETWORKS)
def test_new_units_learn_within_two_steps(name: str, init: Any) -> None:
    model, inputs = trained(name)
    # Enough samples that no unit is silent on all of them.
    inputs = torch.cat([inputs, *(NETWORKS[name].inputs() for _ in range(63))])
    graph = trace(model, inputs)
    graph.apply([Grow(group.name, units=2, init=init) for group in graph])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved = {group.name: torch.zeros(2, dtype=torch.bool) for group in graph}
    for _ in range(2):
        step(model, inputs, optimizer)
        tensors = dict(model.named_parameters())
        for group in graph:
            for s in group.slices:
                if s.role == "out" and (gradient := tensors[s.parameter].grad) is not None:
                    rows = gradient.index_select(s.dim, s.positions[-2:].flatten())
                    size = rows.transpose(0, s.dim).reshape(2, -1).abs().sum(1)
                    moved[group.name] |= size > 0
    assert all(bool(units.all()) for units in moved.values()), moved


def test_new_units_read_new_units_and_nothing_old_does() -> None:
    layers = [nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)]
    model = nn.Sequential(*layers)
    trace(model, torch.zeros(2, 3)).apply([Grow("0", 2), Grow("2", 2)], seed=0)
    middle, last = model.get_parameter("2.weight"), model.get_parameter("4.weight")
    assert not middle[:2, 2:].any()
    assert middle[2:].all()
    assert not last[:, 2:].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_drift_apart(name: str) -> None:
    model, inputs = trained(name)
    graph = trace(model, inputs)
    width = graph.groups[0].width
    graph.apply([Grow(graph.groups[0].name, units=width, init="split")])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        step(model, inputs, optimizer)
    producer = next(s for s in graph.groups[0].slices if s.role == "out")
    weight = dict(model.named_parameters())[producer.parameter].transpose(0, producer.dim)
    one, other = weight[producer.positions[0]], weight[producer.positions[width]]
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_copies_learn_different_things(kind: Callable[..., torch.optim.Optimizer]) -> None:
    # Copies that share outgoing weights one for all move alike: a cosine of 0.9999 with SGD.
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 6), torch.randn(64, 5)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    optimizer = kind(model.parameters(), lr=0.02)

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    train(30)
    trace(model, inputs).apply([Grow("0", units=8, init="split")], optimizer=optimizer)
    weight = model.get_parameter("0.weight")
    before = weight.detach().clone()
    train(20)
    moved = weight.detach() - before
    assert nn.functional.cosine_similarity(moved[:8], moved[8:]).mean() < 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_shrunk_equals_masked(name: str) -> None:
    model, inputs = trained(name)
    masked = copy.deepcopy(model)
    graph = trace(model, inputs)
    removed = {group.name: every_second(group.width) for group in graph}
    silence(trace(masked, inputs), removed)
    graph.apply([Shrink(group, remove=units) for group, units in removed.items()])
    torch.testing.assert_close(model(inputs), masked(inputs), rtol=1e-4, atol=1e-5)


def test_mask_follows_its_parameter() -> None:
    model, inputs = trained("mlp")
    graph = trace(model, inputs)
    keep = torch.rand(9, 12) > 0.5
    graph.apply([Mask("2.weight", keep=keep)])
    graph.apply([Shrink("0", remove=[0, 5]), Grow("2", units=2)])
    mask = mask_of(model.get_parameter("2.weight"))
    kept = [u for u in range(12) if u not in (0, 5)]
    assert mask is not None
    assert torch.equal(mask, torch.cat([keep[:, kept], torch.ones(2, 10, dtype=torch.bool)]))
    assert torch.equal(model.get_parameter("2.weight")[:9] == 0, ~keep[:, kept])


@pytest.mark.parametrize(("columns", "rows"), [(600, 500), (7, 700), (600, 3), (1, 1)])
def test_a_large_weight_is_cut_on_both_sides(columns: int, rows: int) -> None:
    middle = nn.Linear(601, 701)
    model = nn.Sequential(nn.Linear(8, 601), middle, nn.Linear(701, 2))
    before = middle.weight.detach().clone()
    units = [torch.randperm(n)[:m].sort().values for n, m in ((601, columns), (701, rows))]
    graph = trace(model, torch.randn(2, 8))
    graph.apply([Shrink(str(n), keep=kept.tolist()) for n, kept in enumerate(units)])
    assert torch.equal(middle.weight, before[units[1]][:, units[0]])


@pytest.mark.parametrize(
    ("plan", "compensate", "message"),
    [
        ("grow", None, "'g' is not an edit"),
        ([Shrink("0", remove=[1]), 3], None, "3 is not an edit"),
        (Shrink("0", remove=[1]), True, "compensate is True; give batches of inputs"),
    ],
)
def test_arguments_of_other_types_are_named(plan: Any, compensate: Any, message: str) -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(1, 3))
    with pytest.raises(EditError, match=message):
        graph.apply(plan, compensate=compensate)
    assert graph.widths == {"0": 4}


def test_arguments_in_the_wrong_order_are_named(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    path: Any = tmp_path / "network.safetensors"
    with pytest.raises(CheckpointError, match=r"save\(path, model\): the second argument is a Po"):
        save(model, path)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"load\(path, model\): the second argument is a Po"):
        load(model, path)  # type: ignore[arg-type]
