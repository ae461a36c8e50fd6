"""Optimizers of one's own, several at once, groups, and optimizers that cannot follow."""

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Grow, Mask, Shrink, trace
from tests.structure.editing import assert_same, everything, step
from tests.structure.zoo import trained


class _Blocks(torch.optim.SGD):
    """Keeps statistics per block of a parameter, which no one can resize."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["blocks"] = torch.zeros(3)
        return super().step(closure)


def test_optimizers_of_another_network_are_refused() -> None:
    model, inputs = trained("mlp")
    foreign = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(EditError, match="none of this network's parameters"):
        trace(model, inputs).apply([Grow("0", units=1)], optimizer=foreign)


def test_state_that_cannot_follow_is_refused_before_anything_changes() -> None:
    model, inputs = trained("mlp")
    optimizer = _Blocks(model.parameters(), lr=0.1)
    step(model, inputs, optimizer)
    graph = trace(model, inputs)
    before = everything(model, optimizer, graph)
    with pytest.raises(EditError, match=r"keeps 'blocks' of shape \(3,\)"):
        graph.apply([Grow("0", units=1)], optimizer=optimizer)
    assert_same(everything(model, optimizer, graph), before)


def test_lbfgs_is_refused() -> None:
    model, inputs = trained("mlp")
    with pytest.raises(EditError, match="LBFGS"):
        trace(model, inputs).apply(
            [Grow("0", units=1)], optimizer=torch.optim.LBFGS(model.parameters())
        )


class _OtherArguments(torch.optim.Adagrad):
    """Takes arguments that its groups do not hold."""

    def __init__(self, params: Any, temperature: float) -> None:
        super().__init__(params, lr=temperature, initial_accumulator_value=0.3)


class _Rich(Optimizer):
    """Keeps state in lists and dicts, per row and per column, copies, and on another device."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, _: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state["history"] = [torch.zeros_like(parameter) for _ in range(2)]
                state["slow"] = {"weights": parameter.detach().clone(), "steps": 0}
                state["per_row"] = torch.ones(parameter.shape[0])
                state["per_column"] = torch.ones(parameter.shape[-1])
                state["away"] = torch.zeros_like(parameter, device="meta")
            state["slow"]["steps"] += 1
            with torch.no_grad():
                state["history"][0].add_(parameter.grad)
                state["per_row"] += parameter.grad.reshape(parameter.shape[0], -1).sum(1)
                state["per_column"] += parameter.grad.reshape(-1, parameter.shape[-1]).sum(0)
                parameter.sub_(self.param_groups[0]["lr"] * parameter.grad)
        return None


def test_optimizers_of_ones_own_follow() -> None:
    model, inputs = trained("mlp")
    optimizer = _OtherArguments(model.parameters(), temperature=0.1)
    step(model, inputs, optimizer)
    graph = trace(model, inputs)
    graph.apply([Grow("0", units=2)], optimizer=optimizer)
    weight = model.get_parameter("0.weight")
    assert bool((optimizer.state[weight]["sum"][12:] == torch.tensor(0.3)).all())

    rich = _Rich(model.parameters())
    step(model, inputs, rich)
    weight = model.get_parameter("2.weight")
    old = copy.deepcopy(rich.state[weight])
    graph.apply([Shrink("0", keep=range(2, 14)), Grow("2", units=3)], optimizer=rich)
    state = rich.state[weight]
    assert weight.shape == state["away"].shape == (12, 12)
    assert state["away"].is_meta
    assert torch.equal(state["history"][0][:9], old["history"][0][:, 2:])
    assert bool((state["history"][0][9:] == 0).all())
    assert torch.equal(state["slow"]["weights"][:9], old["slow"]["weights"][:, 2:])
    assert torch.equal(state["slow"]["weights"][9:], weight[9:])
    assert torch.equal(state["per_row"], torch.cat([old["per_row"], torch.ones(3)]))
    assert torch.equal(state["per_column"], old["per_column"][2:])
    graph.apply([Mask("2.weight", keep=weight > 0)], optimizer=rich)
    step(model, inputs, rich)


def test_groups_and_what_they_leave_out() -> None:
    model, inputs = trained("mlp")
    model.get_parameter("0.bias").requires_grad_(False)
    parameters = dict(model.named_parameters())
    rate = torch.tensor(0.01)
    groups: list[Any] = [
        {"params": [parameters["0.weight"], parameters["0.bias"]], "lr": rate},
        {"params": [parameters["2.weight"]], "lr": 0.1, "weight_decay": 0.2},
    ]
    optimizer = torch.optim.Adam(groups, lr=0.5)
    for _ in range(3):
        step(model, inputs, optimizer)
    graph = trace(model, inputs)
    options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    graph.apply([Shrink("0", keep=[1, 2, 3]), Grow("2", units=2)], optimizer=optimizer)
    graph.apply([Mask("2.weight", keep=parameters["2.weight"] > 0)], optimizer=optimizer)
    step(model, inputs, optimizer)
    assert optimizer.param_groups[0]["lr"] is rate
    for group, expected in zip(optimizer.param_groups, options, strict=True):
        assert {k: group[k] for k in expected} == expected
    assert set(optimizer.state) == {parameters["0.weight"], parameters["2.weight"]}
    assert all(float(state["step"]) == 4 for state in optimizer.state.values())
    assert not parameters["0.bias"].requires_grad
    assert parameters["2.bias"].shape == (11,)


def test_several_optimizers_share_one_network() -> None:
    model, inputs = trained("mlp")
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    one, other = torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.Adam(rest)

    def train() -> None:
        model.zero_grad()
        model(inputs).square().mean().backward()
        one.step()
        other.step()

    train()
    graph = trace(model, inputs)
    receipt = graph.apply([Grow("0", units=2), Shrink("2", remove=[1])], optimizer=(one, other))
    for optimizer in (one, other):
        for parameter, state in optimizer.state.items():
            for value in state.values():
                assert not isinstance(value, Tensor) or value.shape in ((), parameter.shape)
    train()
    receipt.undo()
    receipt = graph.apply([Grow("0", units=2)], optimizer=[one, other, one])
    train()
    foreign = torch.optim.SGD(nn.Linear(1, 1).parameters())
    for wrong, message in ((foreign, "none of this network's"), ("sgd", "not a torch optimizer")):
        with pytest.raises(EditError, match=message):
            graph.apply([Grow("0", units=2)], optimizer=cast(Any, [one, wrong]))
