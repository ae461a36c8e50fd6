"""Tables that layers keep between passes follow their parameters, whenever they were made."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.structure import Grow, Shrink, load, save, trace
from tests.structure.caching import CACHES, InDict, WithConstant, WithState

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
HEADS = "1.qkv"


def network(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), layer, nn.Linear(16, 3)).eval()


@pytest.mark.parametrize("filled", ["never", "before", "after"])
@pytest.mark.parametrize("kind", CACHES)
def test_edits_leave_no_old_table_behind(kind: type[nn.Module], filled: str) -> None:
    layer, copied = kind(), kind()
    model, twin = network(layer), network(copied)
    twin.load_state_dict(model.state_dict())
    copied.index = layer.index
    if filled == "before":
        model(X)
    graph = trace(model, X)
    assert graph.widths[HEADS] == 4
    assert graph[HEADS].exact_growth
    before = twin(X)
    if filled == "after":
        model(X)
    for edit in (Grow(HEADS, units=1), Shrink(HEADS, remove=[4]), Grow("0", units=2)):
        receipt = graph.apply([edit])
        torch.testing.assert_close(model(X), before)
    receipt.undo()
    torch.testing.assert_close(model(X), before)
    graph.apply([Shrink(group.name, keep=range(group.width // 2)) for group in graph.groups])
    assert model(X).shape == (2, 5, 3)


def test_a_trace_leaves_a_filled_table_where_it_is() -> None:
    layer = InDict()
    model = network(layer)
    model(X)
    table = layer.kept["table"]
    trace(model, X)
    assert layer.kept["table"] is table


def test_an_edit_that_is_undone_brings_the_table_back() -> None:
    layer = InDict()
    model = network(layer)
    graph = trace(model, X)
    model(X)
    table = layer.kept["table"]
    receipt = graph.apply([Grow(HEADS, units=1)])
    assert not layer.kept
    receipt.undo()
    assert layer.kept["table"] is table


def test_constants_are_no_caches() -> None:
    layer = WithConstant()
    model = network(layer)
    constant = layer.constant
    graph = trace(model, X)
    before = model(X)
    graph.apply([Grow(HEADS, units=1)])
    assert layer.constant is constant
    torch.testing.assert_close(model(X), before)


def test_a_state_of_earlier_batches_is_no_cache() -> None:
    model = WithState()
    model(X)
    state: Tensor = model.last
    trace(model, X)
    assert model.last is state
    assert state != 0


def test_a_constant_in_a_buffer_that_is_not_saved_follows_its_width() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.rand(16), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.get_buffer("scale")

    layer = Scaled()
    model = network(layer)
    graph = trace(model, X)
    assert ("1.scale", 0) in {(s.parameter, s.dim) for s in graph["0"].slices}
    graph.apply([Shrink("0", keep=range(4))])
    assert layer.get_buffer("scale").shape == (4,)


class _Rotary(nn.Module):
    """Scales keys by a table that is made again if the inputs are longer than ever before."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.out = nn.Linear(6, 6), nn.Linear(6, 2)
        self.make(4)

    def make(self, length: int) -> None:
        self.length = length
        width = self.out.in_features
        table = torch.outer(torch.arange(length), torch.arange(1, width + 1)).cos()
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.length:
            self.make(x.shape[1])
        out: Tensor = self.out(self.keys(x) * self.table[: x.shape[1]])
        return out


def test_a_table_may_grow_with_the_inputs_between_edits(tmp_path: Path) -> None:
    model = _Rotary()
    graph = trace(model, torch.randn(2, 3, 6))
    assert graph.widths == {"keys": 6}
    longer = torch.randn(2, 9, 6)
    model(longer)
    graph.cost()
    graph.apply(Shrink("keys", remove=[5]))
    assert model.table.shape == (9, 5)
    before = model(longer)
    save(tmp_path / "model", model)
    again = _Rotary()
    load(tmp_path / "model", again)
    assert again.length == 9
    assert torch.equal(again(longer), before)
    assert again(torch.randn(2, 12, 6)).shape == (2, 12, 2)


class _Carried(nn.Module):
    """Carries its state from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 2)
        self.state: Tensor | None = None
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden, state = self.rnn(x, self.state)
        self.state, self.seen = state.detach(), hidden.detach()
        out: Tensor = self.out(hidden)
        return out


@pytest.mark.parametrize("batch", [2, 3])
def test_a_warning_says_that_a_carried_state_is_lost(batch: int) -> None:
    model = _Carried().eval()
    graph = trace(model, torch.randn(2, 5, 3))
    model(torch.randn(batch, 5, 3))
    with pytest.warns(UserWarning, match="removes the state .* 'state'") as caught:
        receipt = graph.apply(Grow("rnn", units=1))
    assert caught[0].filename == __file__
    assert model.state is None
    receipt.undo()
    assert model.state is not None


def test_what_a_pass_only_writes_is_dropped_without_a_warning() -> None:
    model = _Carried().eval()
    graph = trace(model, torch.randn(2, 5, 3))
    model.seen = torch.randn(2, 5, 6)
    graph.apply(Grow("rnn", units=1))
    assert model.seen is None
