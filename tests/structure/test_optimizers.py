"""Optimizers follow: a step after an edit is the step of the masked, or the smaller, network."""

import copy
import inspect
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.structure import Grow, Mask, Shrink, trace
from tests.structure.editing import (
    OPTIMIZERS,
    after_growth,
    after_shrinking,
    in_double,
    shrunk_by_hand,
    silence,
    step,
)
from tests.structure.zoo import trained


def test_every_optimizer_of_torch_is_tested() -> None:
    found = {c for c in vars(torch.optim).values() if inspect.isclass(c)}
    classes = {c for c in found if issubclass(c, Optimizer) and c is not Optimizer}
    alike = {type(make([nn.Parameter(torch.zeros(1))])) for make in OPTIMIZERS.values()}
    # Their steps mix weights, or need other gradients: tested one by one.
    others = {torch.optim.Adafactor, torch.optim.SparseAdam, torch.optim.LBFGS}
    others |= {getattr(torch.optim, name) for name in ("Muon",) if hasattr(torch.optim, name)}
    assert alike | others == classes


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["mlp", "vgg"], OPTIMIZERS),
        # Key biases have gradients of zero but for rounding, which the others magnify.
        *itertools.product(
            ["attention"],
            sorted(OPTIMIZERS.keys() - {"rprop", "foreach_rprop", "plain_rmsprop"}),
        ),
    ],
)
def test_step_after_shrink_equals_step_on_masked(name: str, kind: str) -> None:
    found, expected = after_shrinking(name, OPTIMIZERS[kind], num_steps=2)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_step_after_growth_equals_step_before_it(kind: str) -> None:
    found, expected = after_growth("vgg", OPTIMIZERS[kind])
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_of_new_units_is_that_of_a_new_parameter(kind: str) -> None:
    model, inputs = trained("mlp")
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, inputs, optimizer)
    trace(model, inputs).apply([Grow("0", units=2)], optimizer=optimizer)
    weight = model.get_parameter("0.weight")
    twin = nn.Parameter(torch.zeros(2, 7))
    twin.grad = torch.zeros(2, 7)
    fresh = OPTIMIZERS[kind]([twin])
    fresh.step()
    if "ax" in fresh.state[twin]:  # an average of the weights themselves
        fresh.state[twin]["ax"] = weight[12:]
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


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_step_after_mask_equals_step_without_what_is_masked(kind: str) -> None:
    model, inputs = in_double("mlp")
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(3):
        step(model, inputs, optimizer)
    keep = torch.rand(9, 12) > 0.4
    old = copy.deepcopy(model)
    reference = OPTIMIZERS[kind](old.parameters())
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    trace(model, inputs).apply([Mask("2.weight", keep=keep)], optimizer=optimizer)
    for _ in range(2):
        old.get_parameter("2.weight").data.mul_(keep)
        step(model, inputs, optimizer)
        step(old, inputs, reference)
    old.get_parameter("2.weight").data.mul_(keep)
    for one, other in zip(model.parameters(), old.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_averages_of_weights_start_at_the_new_weights() -> None:
    model, inputs = trained("mlp")
    optimizer = torch.optim.ASGD(model.parameters(), t0=0)
    step(model, inputs, optimizer)
    weight = model.get_parameter("0.weight")
    trace(model, inputs).apply([Grow("0", units=2), Shrink("2", keep=[3])], optimizer=optimizer)
    assert torch.equal(optimizer.state[weight]["ax"][12:], weight[12:])
    keep = weight > 0
    trace(model, inputs).apply([Mask("0.weight", keep=keep)], optimizer=optimizer)
    assert torch.equal(optimizer.state[weight]["ax"] == 0, ~keep)


@pytest.mark.parametrize("edit", [Grow("0", units=3), Shrink("2", keep=[4]), Grow("2", units=2)])
def test_factored_state_follows_where_a_width_is_one(edit: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 5), nn.ReLU(), nn.Linear(5, 1))
    inputs = torch.randn(4, 1)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    step(model, inputs, optimizer)
    trace(model, inputs).apply([edit], optimizer=optimizer)
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        if parameter.ndim > 1:
            assert state["row_var"].shape == (parameter.shape[0], 1)
            assert state["col_var"].shape == (1, parameter.shape[1])
    step(model, inputs, optimizer)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_step_of_muon_after_shrink_equals_step_on_masked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(6, 12, bias=False), nn.Tanh(), nn.Linear(12, 12, bias=False), nn.Tanh()),
        nn.Linear(12, 6, bias=False),
    ).double()
    inputs = torch.randn(8, 6).double()
    make: Any = torch.optim.Muon
    optimizer = make(model.parameters(), lr=0.01, adjust_lr_fn="original")
    for _ in range(3):
        step(model, inputs, optimizer)
    masked = copy.deepcopy(model)
    reference = make(masked.parameters(), lr=0.01, adjust_lr_fn="original")
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    full = trace(masked, inputs)
    removed = {"0": (0, 5, 7), "2": (1, 2, 11)}
    silence(full, removed)
    for weight in masked.parameters():  # what is gone has no momentum either
        reference.state[weight]["momentum_buffer"].mul_(weight != 0)
    graph = trace(model, inputs)
    graph.apply([Shrink(g, remove=u) for g, u in removed.items()], optimizer=optimizer)
    before = shrunk_by_hand(masked, full, removed)
    step(model, inputs, optimizer)
    step(masked, inputs, reference)
    after = shrunk_by_hand(masked, full, removed)

    def rate(weight: Tensor) -> float:
        """Its own, which depends on the shape of a matrix."""
        return math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))

    for name, weight in model.named_parameters():
        decayed = before[name] * (1 - 0.01 * 0.1)
        moved = (weight.detach() - decayed) / rate(weight)
        expected = (after[name] - decayed) / rate(masked.get_parameter(name))
        # It orthogonalises in bfloat16.
        torch.testing.assert_close(moved, expected, rtol=0.1, atol=1e-4)


@pytest.mark.parametrize("edit", [Grow("0", units=2), Shrink("0", remove=[1, 4])])
def test_sparse_gradients_and_their_state_follow(edit: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6, sparse=True), nn.Tanh(), nn.Linear(6, 5))
    inputs = torch.randint(0, 20, (4, 3))
    sparse = torch.optim.SparseAdam(model[0].parameters(), lr=0.01)
    dense = torch.optim.Adam(model[2].parameters(), lr=0.01)
    optimizers = [sparse, dense]
    for _ in range(2):
        model.zero_grad()
        model(inputs).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    weight = model.get_parameter("0.weight")
    grad, moment = weight.grad, sparse.state[weight]["exp_avg"].clone()
    assert grad is not None
    trace(model, inputs).apply([edit], optimizer=optimizers)
    kept = [0, 2, 3, 5] if isinstance(edit, Shrink) else list(range(6))
    assert weight.grad is not None
    assert weight.grad.is_sparse
    assert torch.equal(weight.grad.to_dense()[:, : len(kept)], grad.to_dense()[:, kept])
    assert torch.equal(sparse.state[weight]["exp_avg"][:, : len(kept)], moment[:, kept])
    keep = weight > 0
    trace(model, inputs).apply([Mask("0.weight", keep=keep)], optimizer=optimizers)
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        model(inputs).square().mean().backward()
        assert bool((weight[~keep] == 0).all())
