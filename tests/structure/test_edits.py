"""Edits against references: grown = old, shrunk = masked, a step after = one on the masked."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.structure import (
    Grow,
    Mask,
    Shrink,
    mask_of,
    trace,
)
from tests.structure.editing import (
    OPTIMIZERS,
    every_second,
    in_double,
    shrunk_by_hand,
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


@pytest.mark.parametrize("name", NETWORKS)
def test_shrunk_equals_masked(name: str) -> None:
    model, inputs = trained(name)
    masked = copy.deepcopy(model)
    graph = trace(model, inputs)
    removed = {group.name: every_second(group.width) for group in graph}
    silence(trace(masked, inputs), removed)
    graph.apply([Shrink(group, remove=units) for group, units in removed.items()])
    torch.testing.assert_close(model(inputs), masked(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["mlp", "resnet"], OPTIMIZERS),
        # Not Rprop: key biases have gradients of zero but for rounding, and it takes their sign.
        *itertools.product(["attention"], OPTIMIZERS.keys() - {"rprop"}),
    ],
)
def test_step_after_shrink_equals_step_on_masked(name: str, kind: str) -> None:
    model, inputs = in_double(name)
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(3):
        step(model, inputs, optimizer)
    masked = copy.deepcopy(model)
    reference = OPTIMIZERS[kind](masked.parameters())
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    graph, full = trace(model, inputs), trace(masked, inputs)
    removed = {group.name: every_second(group.width) for group in graph}
    silence(full, removed)
    graph.apply([Shrink(g, remove=units) for g, units in removed.items()], optimizer=optimizer)
    for _ in range(2):
        step(model, inputs, optimizer)
        step(masked, inputs, reference)
        silence(full, removed)
    expected = shrunk_by_hand(masked, full, removed)
    for parameter, value in model.named_parameters():
        torch.testing.assert_close(value, expected[parameter], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_step_after_growth_equals_step_before_it(kind: str) -> None:
    model, inputs = in_double("vgg")
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(3):
        step(model, inputs, optimizer)
    old = copy.deepcopy(model)
    reference = OPTIMIZERS[kind](old.parameters())
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    graph = trace(model, inputs)
    added = {group.name: (group.width, group.width + 1) for group in graph}
    graph.apply([Grow(group, units=2) for group in added], optimizer=optimizer)
    step(model, inputs, optimizer)
    step(old, inputs, reference)
    kept = shrunk_by_hand(model, graph, added)
    for parameter, value in old.named_parameters():
        torch.testing.assert_close(kept[parameter], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_of_new_units_is_that_of_a_new_parameter(kind: str) -> None:
    model, inputs = trained("mlp")
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, inputs, optimizer)
    trace(model, inputs).apply([Grow("0", units=2)], optimizer=optimizer)
    twin = nn.Parameter(torch.zeros(2, 7))
    twin.grad = torch.zeros(2, 7)
    fresh = OPTIMIZERS[kind]([twin])
    fresh.step()
    weight = model.get_parameter("0.weight")
    for key, value in optimizer.state[weight].items():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            assert torch.equal(value[12:], fresh.state[twin][key]), key


def test_factored_state_follows() -> None:
    model, inputs = trained("resnet")
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    step(model, inputs, optimizer)
    weight = model.get_parameter("1.conv1.weight")
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    graph = trace(model, inputs)
    graph.apply([Shrink("0", remove=[2]), Grow("1.conv1", units=3)], optimizer=optimizer)
    after = optimizer.state[weight]
    kept = [0, 1, 3, 4, 5]
    assert before["row_var"].shape == (6, 6, 3, 1)
    assert torch.equal(after["row_var"][:6], before["row_var"][:, kept])
    assert torch.equal(after["col_var"][:6], before["col_var"][:, kept])
    assert after["row_var"].shape == (9, 5, 3, 1)
    keep = weight > 0
    graph.apply([Mask("1.conv1.weight", keep=keep)], optimizer=optimizer)
    for _ in range(2):
        step(model, inputs, optimizer)
    assert bool((weight[~keep] == 0).all())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_masked_weights_stay_zero_through_training(kind: str) -> None:
    model, inputs = trained("vgg")
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, inputs, optimizer)
    weight = model.get_parameter("3.weight")
    keep = torch.rand(weight.shape) > 0.5
    keys = model.state_dict().keys()
    trace(model, inputs).apply([Mask("3.weight", keep=keep)], optimizer=optimizer)
    before = weight.detach().clone()
    for _ in range(3):
        step(model, inputs, optimizer)
    assert torch.equal(weight == 0, ~keep)
    assert not torch.equal(weight, before)
    assert isinstance(weight, nn.Parameter)
    assert model.state_dict().keys() == keys


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
