"""Saved optimizer state that an optimizer cannot have made is refused; its own is accepted."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.storage import read_state, write_state
from dynopt_ray.structure import check_saved_state, load, save

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "capturable": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
    "Adadelta": torch.optim.Adadelta,
    "Adafactor": torch.optim.Adafactor,
    "Adagrad": torch.optim.Adagrad,
    "Adamax": torch.optim.Adamax,
    "ASGD": torch.optim.ASGD,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "Rprop": torch.optim.Rprop,
}


OTHERS: list[Any] = [torch.ones(5), torch.ones(1, 3), None, "text", [1.0], {}, True]


class Foreign(torch.optim.Optimizer):
    """Its constructor needs more than its groups hold, and it keeps a matrix of its own."""

    def __init__(self, params: Any, secret: object) -> None:
        self.secret = secret
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> Any:
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                size = parameter.shape[0]
                state.setdefault("inverse", torch.eye(7 * size))
                state["seen"] = [*state.get("seen", []), "a step"]


def trained(made: Callable[[Any], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4))
    optimizer = made(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 2, 5, 5)).square().sum().backward()
        optimizer.step()
    return optimizer


def saved(optimizer: torch.optim.Optimizer) -> tuple[list[Any], list[list[Any]]]:
    """The options and the states as `check_saved_state` takes them, copied."""
    groups = optimizer.param_groups
    options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    states = [[dict(optimizer.state[p]) or None for p in group["params"]] for group in groups]
    return copy.deepcopy(options), copy.deepcopy(states)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_own_state_is_accepted(name: str) -> None:
    optimizer = trained(OPTIMIZERS[name])
    check_saved_state(optimizer, *saved(optimizer))
    # So is one of an optimizer that has not trained all parameters yet.
    options, states = saved(optimizer)
    check_saved_state(optimizer, options, [[None, *states[0][1:]]])


def test_what_is_not_known_of_a_foreign_optimizer_is_accepted() -> None:
    optimizer = trained(lambda p: Foreign(p, "secret"))
    check_saved_state(optimizer, *saved(optimizer))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_tensor_of_another_shape_or_kind_is_refused(name: str) -> None:
    optimizer = trained(OPTIMIZERS[name])
    options, states = saved(optimizer)
    for entry, value in (states[0][0] or {}).items():
        for other in OTHERS:
            if isinstance(value, Tensor):
                with pytest.raises(CheckpointError, match=rf"'{entry}' is .*another network or"):
                    check_saved_state(
                        optimizer, options, [[{**states[0][0], entry: other}, *states[0][1:]]]
                    )
        less = {k: v for k, v in states[0][0].items() if k != entry}
        if isinstance(value, Tensor):
            with pytest.raises(CheckpointError, match=f"'{entry}' is missing"):
                check_saved_state(optimizer, options, [[less, *states[0][1:]]])


@pytest.mark.parametrize("steps", [-1.0, float("nan"), float("inf")])
def test_a_number_of_steps_that_nobody_takes_is_refused(steps: float) -> None:
    optimizer = trained(OPTIMIZERS["Adam"])
    options, states = saved(optimizer)
    states[0][2]["step"] = torch.tensor(steps)
    with pytest.raises(CheckpointError, match="'step' is tensor"):
        check_saved_state(optimizer, options, states)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -0.1),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", None),
        ("lr", "fast"),
        ("lr", True),
        ("lr", 10**400),
        ("lr", torch.ones(2)),
        ("betas", [0.9]),
        ("betas", 0.9),
        ("betas", [0.9, "0.99"]),
        ("betas", [0.9, 1.5]),
        ("eps", -1.0),
        ("weight_decay", [0.1]),
        ("amsgrad", "yes"),
        ("amsgrad", 7),
        ("foreach", "yes"),
    ],
)
def test_an_option_that_it_cannot_have_is_refused(name: str, value: object) -> None:
    optimizer = trained(OPTIMIZERS["Adam"])
    options, states = saved(optimizer)
    options[0][name] = value
    with pytest.raises(CheckpointError, match=rf"cannot have {name} = |refuses the saved options"):
        check_saved_state(optimizer, options, states)


def test_the_checks_change_neither_the_optimizer_nor_its_state() -> None:
    optimizer = trained(OPTIMIZERS["Adam"])
    random = torch.get_rng_state()
    options, states = saved(optimizer)
    before = copy.deepcopy((options, states))
    check_saved_state(optimizer, options, states)
    assert repr((options, states)) == repr(before)
    assert repr(saved(optimizer)) == repr(before)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_checkpoint_with_moments_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save(tmp_path / "network", model, optimizer)
    state = read_state(tmp_path / "network", kind="network")
    state["optimizer"][0]["state"]["weight"]["momentum_buffer"] = torch.ones(2, 4)
    write_state(tmp_path / "network", state, kind="network")
    weight = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    with pytest.raises(CheckpointError, match="does not fit: 'momentum_buffer' is a tensor of"):
        load(tmp_path / "network", model, optimizer)
    assert not torch.equal(model.weight, weight)
    assert not model.weight.any()
