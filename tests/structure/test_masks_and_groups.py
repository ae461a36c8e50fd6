"""What a mask does to a pending gradient, and new entries of parameter groups that differ."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam

from dynopt_ray.structure import Grow, Mask, Shrink, mask_of, trace
from tests.structure.editing import step
from tests.structure.zoo import trained


def test_a_mask_clears_the_pending_gradient_where_it_holds() -> None:
    model, inputs = trained("mlp")
    optimizer = SGD(model.parameters(), lr=1.0, momentum=0.9)
    weight = model.get_parameter("2.weight")
    model(inputs).square().mean().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    keep = torch.arange(weight.numel()).reshape(weight.shape) % 3 > 0
    trace(model, inputs).apply([Mask("2.weight", keep=keep)], optimizer=optimizer)
    assert weight.grad is not None
    assert torch.equal(weight.grad, before["2.weight"] * keep)
    assert bool((before["2.weight"][~keep] != 0).any())
    for name, parameter in model.named_parameters():
        if name != "2.weight":
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, before[name])
    # So the step that was due leaves no momentum there.
    optimizer.step()
    momentum = optimizer.state[weight]["momentum_buffer"]
    assert not bool(momentum[~keep].any())
    assert bool((momentum[keep] != 0).any())


def test_a_mask_without_a_pending_gradient_makes_none() -> None:
    model, inputs = trained("mlp")
    keep = torch.rand(9, 12) > 0.5
    trace(model, inputs).apply([Mask("2.weight", keep=keep)])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_refitted_weights_keep_their_gradient_and_a_copy_of_their_state() -> None:
    model, inputs = trained("mlp")
    optimizer = Adam(model.parameters(), lr=0.01)
    step(model, inputs, optimizer)
    model(inputs).square().mean().backward()
    weight, bias = (model.get_parameter(f"2.{name}") for name in ("weight", "bias"))
    before, state = bias.clone(), dict(optimizer.state[bias])
    assert bias.grad is not None
    grad = bias.grad.clone()
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    receipt = trace(model, inputs).apply(
        [Mask("2.weight", keep=keep)], optimizer=optimizer, compensate=inputs
    )
    assert "2.weight" in receipt.refitted
    assert not torch.equal(bias, before)  # it took up what the lost weights gave on average
    assert mask_of(bias) is None
    assert torch.equal(bias.grad, grad)
    for key, value in optimizer.state[bias].items():
        assert torch.equal(value, state[key])
        assert value is not state[key]
    kept = {key: value.clone() for key, value in state.items()}
    step(model, inputs, optimizer)
    assert all(torch.equal(state[key], value) for key, value in kept.items())


@pytest.mark.parametrize("edit", [Grow("0", units=3), Grow("2", units=2)])
def test_new_entries_start_as_those_of_their_own_parameter_group(edit: Any) -> None:
    model, inputs = trained("mlp")
    starts = {"0": 0.5, "2": 2.0, "4": 7.0}
    optimizer = Adagrad(
        [
            {
                "params": list(model.get_submodule(name).parameters()),
                "initial_accumulator_value": start,
            }
            for name, start in starts.items()
        ],
        lr=0.01,
    )
    step(model, inputs, optimizer)
    old = {name: parameter.shape for name, parameter in model.named_parameters()}
    before = {n: optimizer.state[p]["sum"].clone() for n, p in model.named_parameters()}
    trace(model, inputs).apply([edit], optimizer=optimizer)
    num_grown = 0
    for name, parameter in model.named_parameters():
        total = optimizer.state[parameter]["sum"]
        assert total.shape == parameter.shape
        there = tuple(slice(size) for size in old[name])
        assert torch.equal(total[there], before[name])
        new = torch.ones_like(total, dtype=torch.bool)
        new[there] = False
        assert bool((total[new] == starts[name.partition(".")[0]]).all())
        num_grown += bool(new.any())
    assert num_grown == 3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_state_of_masked_entries_is_that_of_their_own_group(order: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = torch.randn(5, 3)
    optimizer = Adagrad(
        [
            {"params": [model.get_parameter(name)], "initial_accumulator_value": start}
            for name, start in (("0.weight", 0.5), ("2.weight", 2.0))
        ]
    )
    step(model, inputs, optimizer)
    graph = trace(model, inputs)
    for index in order:
        name, start = (("0.weight", 0.5), ("2.weight", 2.0))[index]
        weight = model.get_parameter(name)
        keep = torch.arange(weight.numel()).reshape(weight.shape) > 2
        graph.apply([Mask(name, keep=keep)], optimizer=optimizer)
        total = optimizer.state[weight]["sum"]
        assert bool((total[~keep] == start).all())
        assert bool((total[keep] != start).all())
    graph.apply([Shrink("0", remove=[0])], optimizer=optimizer)
    assert optimizer.state[model.get_parameter("2.weight")]["sum"].shape == (2, 3)
