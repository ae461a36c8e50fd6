"""Going back is bit-exact, whatever happened in between."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Graph, Grow, Mask, Shrink, mask_of, trace
from dynopt_ray.training import Snapshot

OPTIMIZERS: list[Any] = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, lr=torch.tensor(0.01), centered=True),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 1, 4, 4)).square().mean().backward()
    optimizer.step()


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "grad": [p.grad for p in model.parameters()],
            "optimizer": optimizer.state_dict(),
            "modes": [m.training for m in model.modules()],
            "random": torch.get_rng_state(),
            "sizes": [model.get_submodule("0").out_channels, model.get_submodule("5").in_features],
        }
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def disturb(graph: Graph, optimizer: torch.optim.Optimizer) -> None:
    graph.apply([Shrink("0", remove=[1]), Grow("0", 3)], optimizer=optimizer)
    keep = torch.rand(graph.model.get_parameter("5.weight").shape) > 0.5
    graph.apply([Mask("5.weight", keep=keep)], optimizer=optimizer)
    step(graph.model, optimizer)
    optimizer.param_groups[0]["lr"] = 7.0
    optimizer.param_groups[0]["initial_lr"] = 7.0
    graph.model.eval()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_everything_comes_back_and_training_goes_on_as_if_nothing_had_been(make: Any) -> None:
    model = network()
    optimizer = make(model.parameters())
    graph = trace(model, torch.zeros(2, 1, 4, 4))
    parameters = list(model.parameters())
    step(model, optimizer)
    snapshot, before = Snapshot(graph, optimizer), state(model, optimizer)
    step(model, optimizer)
    undisturbed = state(model, optimizer)
    for _ in range(2):
        disturb(graph, optimizer)
        snapshot.restore()
        assert same(before, state(model, optimizer))
        step(model, optimizer)
        assert same(undisturbed, state(model, optimizer))
    assert graph.widths == {"0": 4}
    assert not graph.receipts
    assert mask_of(model.get_parameter("5.weight")) is None
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_an_older_plan_stays() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    graph = trace(model, torch.zeros(2, 1, 4, 4))
    receipt = graph.apply([Shrink("0", remove=[0])], optimizer=optimizer)
    snapshot = Snapshot(graph, optimizer)
    disturb(graph, optimizer)
    snapshot.restore()
    assert graph.widths == {"0": 3}
    assert graph.receipts == [receipt]


def test_generators_come_back() -> None:
    generator = torch.Generator().manual_seed(3)
    snapshot = Snapshot(nn.Linear(1, 1), generators=[generator])
    first = torch.rand(2, generator=generator), torch.rand(2)
    snapshot.restore()
    assert torch.equal(first[0], torch.rand(2, generator=generator))
    assert torch.equal(first[1], torch.rand(2))


def test_options_that_are_tensors_come_back_in_place() -> None:
    model, lr = nn.Linear(2, 2), torch.tensor(0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    snapshot = Snapshot(model, optimizer)
    for _ in range(2):
        lr.fill_(0.5)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.7)
        snapshot.restore()
        assert optimizer.param_groups[0]["lr"] is lr
        assert torch.equal(lr, torch.tensor(0.1))


def test_what_cannot_be_restored_is_refused_and_left_alone() -> None:
    model = network()
    graph = trace(model, torch.zeros(2, 1, 4, 4))
    receipt = graph.apply([Shrink("0", remove=[0])])
    snapshot = Snapshot(graph)
    receipt.undo()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(EditError, match="applied before this snapshot has been undone"):
        snapshot.restore()
    assert same(before, copy.deepcopy(model.state_dict()))
    blind = Snapshot(model)
    graph.apply([Shrink("0", remove=[0])])
    with pytest.raises(EditError, match=r"resized since this snapshot.*Snapshot\(graph"):
        blind.restore()


def test_widths_that_were_made_final_since_are_refused_and_nothing_is_undone() -> None:
    model = network()
    graph = trace(model, torch.zeros(2, 1, 4, 4))
    snapshot = Snapshot(graph)
    graph.apply([Shrink("0", remove=[0])])
    graph.commit()
    graph.apply([Grow("0", 2)])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(EditError, match="committed since"):
        snapshot.restore()
    assert graph.widths == {"0": 5}
    assert same(before, copy.deepcopy(model.state_dict()))


def test_an_older_plan_that_was_committed_is_named_as_such() -> None:
    graph = trace(network(), torch.zeros(2, 1, 4, 4))
    graph.apply([Shrink("0", remove=[0])])
    snapshot = Snapshot(graph)
    graph.commit()
    with pytest.raises(EditError, match="undone or committed since"):
        snapshot.restore()


def test_masks_that_were_made_final_since_go() -> None:
    model = network()
    graph = trace(model, torch.zeros(2, 1, 4, 4))
    weight = model.get_parameter("5.weight")
    snapshot, before = Snapshot(graph), weight.detach().clone()
    graph.apply([Mask("5.weight", keep=torch.zeros(weight.shape, dtype=torch.bool))])
    graph.commit()
    snapshot.restore()
    assert mask_of(weight) is None
    assert torch.equal(weight, before)
