"""Undo after training gives the network of before the plan, whatever training has done to it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.structure import Grow, Insert, Shrink, trace
from dynopt_ray.training import Snapshot
from tests.structure.editing import assert_same, step
from tests.structure.zoo import trained

X = torch.randn(3, 4)


class Centred(nn.Module):
    """Subtracts a running mean, which training assigns anew."""

    mean: Tensor
    other: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("other", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x - self.other)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.mean(0).detach()
            self.other = 0.9 * self.other + 0.1 * x.mean(0)
        out: Tensor = self.second(h - self.mean)
        return out


class Table(nn.Module):
    """Keeps a table of positions that grows with the inputs."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.make(3)

    def make(self, length: int) -> None:
        self.length = length
        self.register_buffer("table", torch.arange(length)[:, None] / 10.0)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.length:
            self.make(len(x))
        out: Tensor = self.second(self.first(x) + self.table[: len(x)])
        return out


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.SGD])
def test_what_the_plan_did_not_touch_is_restored_too(
    optimizer_class: type[torch.optim.Optimizer],
) -> None:
    model, inputs = trained("mlp")
    optimizer = optimizer_class(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    step(model, inputs, optimizer)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    graph = trace(model, inputs)
    receipts = []
    for _ in range(2):
        receipts.append(graph.apply(Grow("0", units=2), optimizer=optimizer))
        step(model, inputs, optimizer)
    for receipt in reversed(receipts):
        receipt.undo()
    now = model.state_dict(), optimizer.state_dict()
    assert_same(now[0], before[0])
    for key, state in before[1]["state"].items():
        assert_same(now[1]["state"][key], state)


def test_state_that_training_has_added_is_removed() -> None:
    model, inputs = trained("mlp")
    optimizer = torch.optim.Adam(model.parameters())
    receipt = trace(model, inputs).apply(Grow("0", units=2), optimizer=optimizer)
    step(model, inputs, optimizer)
    receipt.undo()
    assert not optimizer.state_dict()["state"]


def test_receipts_share_copies_of_what_has_not_changed() -> None:
    model, inputs = trained("mlp")
    graph = trace(model, inputs)
    receipts = [graph.apply(Grow("0", units=1)) for _ in range(3)]
    last = [*dict(model.named_parameters())][-1]
    kept = []
    for receipt in receipts:
        values = receipt._transaction.values
        assert values is not None
        kept.append(values._by_tensor[id(model.get_parameter(last))][1])
    assert kept[0] is kept[1] is kept[2]
    graph.commit()
    assert all(r._transaction.values is None for r in receipts)


def test_buffers_that_training_assigned_anew_return() -> None:
    model = Centred()
    before = copy.deepcopy(model.state_dict())
    receipt = trace(model, X).apply(Grow("first", units=1))
    model.train()(X)
    receipt.undo()
    assert_same(model.state_dict(), before)
    model.eval()(X)


def test_snapshots_restore_buffers_that_training_assigned_anew() -> None:
    model = Centred()
    graph = trace(model, X)
    before = copy.deepcopy(model.state_dict())
    snapshot = Snapshot(graph)
    graph.apply(Shrink("first", remove=[0]))
    model.train()(X)
    snapshot.restore()
    assert_same(model.state_dict(), before)
    model.train()(X)


@pytest.mark.parametrize("how", ["undo", "snapshot"])
def test_a_table_that_grew_with_the_inputs_stays(how: str) -> None:
    model = Table()
    graph = trace(model, X)
    snapshot = Snapshot(graph)
    receipt = graph.apply(Grow("first", units=1))
    longer = torch.randn(7, 4)
    model(longer)
    receipt.undo() if how == "undo" else snapshot.restore()
    assert graph.widths == {"first": 8}
    assert model(longer).shape == (7, 2)


def test_a_dtype_chosen_since_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2), nn.Linear(2, 2))
    before = copy.deepcopy(model).double().state_dict()
    model(X).sum().backward()
    receipt = trace(model, X).apply(Grow("0", units=1))
    model.double()
    receipt.undo()
    now = model.state_dict()
    statistics = {key for key in now if key.startswith("1.")}
    assert {t.dtype for t in now.values() if t.is_floating_point()} == {torch.float64}
    assert_same(
        {k: now[k] for k in now.keys() - statistics},
        {k: before[k] for k in before.keys() - statistics},
    )
    model(X.double()).sum().backward()


def test_inserted_blocks_leave_and_the_rest_returns() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    receipt = trace(model, X).apply(Insert(after="1"), optimizer=optimizer)
    step(model, X, optimizer)
    receipt.undo()
    assert_same(model.state_dict(), before)
