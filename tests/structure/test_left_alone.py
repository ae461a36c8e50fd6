"""What an edit must not touch, and what must not touch an edit."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.errors import EditError, TraceError, UnknownNameError
from dynopt_ray.structure import (
    Graph,
    Grow,
    Insert,
    Mask,
    Shrink,
    history_of,
    load,
    mask_of,
    measure,
    plan_from_json,
    save,
    trace,
)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


X = torch.randn(16, 5)


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class Projected(nn.Module):
    """The projection belongs to the module whose hidden units grow, and is no part of them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, proj_size=4, batch_first=True)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.lstm(x)[0])
        return y


class TwoWeights(nn.Module):
    """Two layers in one module, which resets both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.empty(6, 5)), nn.Parameter(torch.empty(2, 6))
        self.bias = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in (self.first, self.second, self.bias):
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.first).tanh(), self.second, self.bias)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("make", "x"), [(Projected, torch.randn(3, 4, 5)), (TwoWeights, torch.randn(3, 5))]
)
def test_growth_resets_nothing_else_of_its_module(make: Callable[[], nn.Module], x: Tensor) -> None:
    model = make()
    graph, before, state = trace(model, x), model(x), copy.deepcopy(model.state_dict())
    receipt = graph.apply(Grow(graph.groups[0].name, units=1))
    torch.testing.assert_close(model(x), before)
    receipt.undo()
    assert same(model, state)


def test_new_entries_of_buffers_are_like_those_there() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("variance", torch.tensor([0.01, 5.0, 0.2, 0.1, 0.02, 0.05]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.get_buffer("variance").rsqrt()

    model = nn.Sequential(nn.Linear(5, 6), Scaled(), nn.Linear(6, 2))
    before: Tensor = model(X)
    trace(model, X).apply(Grow("0", units=20))
    assert bool((model.get_buffer("1.variance") > 0).all())
    torch.testing.assert_close(model(X), before)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD])
def test_masks_hold_under_optimizers_that_were_not_named(make: Any) -> None:
    model = mlp()
    arguments = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(model.parameters(), lr=0.1, weight_decay=0.1, **arguments)

    def step() -> None:
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step()
    keep = torch.rand(6, 8) > 0.5
    receipt = trace(model, X).apply(Mask("2.weight", keep=keep))
    for _ in range(3):
        step()
    assert bool((model.get_parameter("2.weight")[~keep] == 0).all())
    receipt.undo()
    for _ in range(3):
        step()
    assert bool((model.get_parameter("2.weight")[~keep] != 0).all())


def test_undo_is_refused_after_another_graph_or_a_file_changed_the_network(tmp_path: Path) -> None:
    model = mlp()
    graph = trace(model, X)
    receipt = graph.apply(Grow("0", units=2))
    other = trace(model, X)
    later = other.apply(Shrink("2", remove=[0]))
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(EditError, match="behind this graph's back"):
        receipt.undo()
    assert same(model, state)
    later.undo()
    save(tmp_path / "same.safetensors", model)
    load(tmp_path / "same.safetensors", model)
    with pytest.raises(EditError, match="behind this graph's back"):
        receipt.undo()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda graph: pickle.loads(pickle.dumps(graph))])
def test_a_copy_of_a_graph_has_its_masks_and_no_receipts(copied: Callable[[Graph], Graph]) -> None:
    graph = trace(model := mlp(), X)
    keep = torch.rand(6, 8) > 0.5
    graph.apply([Mask("2.weight", keep=keep), Shrink("0", remove=[1])])
    twin = copied(graph)
    mask = mask_of(twin.model.get_parameter("2.weight"))
    assert mask is not None
    assert torch.equal(mask, keep[:, [0, *range(2, 8)]])
    assert not twin.receipts
    twin.apply(Shrink("0", remove=[0])).undo()
    assert torch.equal(twin.model(X), model(X))


def test_plans_are_taken_from_generators_and_single_edits() -> None:
    model = mlp()
    receipt = trace(model, X).apply(Grow(name, units=1) for name in ("0", "2"))
    assert len(receipt.plan) == 2
    assert history_of(model) == (receipt.plan,)
    assert trace(model, X).apply(Grow("0", units=1)).widths == {"0": (9, 10)}


def test_bools_are_one_for_each_unit() -> None:
    graph = trace(mlp(), X)
    short = torch.ones(4, dtype=torch.bool)
    for keep in (short, short.numpy(), short.tolist()):
        with pytest.raises(EditError, match="4 bools for 8 units"):
            graph.apply(Shrink("0", keep=cast(Any, keep)))
    whole = torch.ones(8, dtype=torch.bool)
    whole[[1, 3]] = False
    assert graph.apply(Shrink("0", keep=cast(Any, whole.numpy()))).widths == {"0": (8, 6)}


def test_a_bias_that_others_add_too_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 6)
            self.one, self.other = nn.Linear(6, 4), nn.Linear(5, 4)
            self.other.bias = self.one.bias

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.one(self.first(x).relu() + 1), 20 * self.other(x)], 1)

    model = Shared()
    bias = model.one.bias.detach().clone()
    receipt = trace(model, X).apply(Shrink("first", remove=[0, 1, 2]), compensate=X)
    assert receipt.refitted == ("one.weight",)
    assert torch.equal(model.one.bias, bias)


def test_buffers_that_a_pass_writes_to_are_as_before() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            self.get_buffer("calls").add_(1)
            self.get_buffer("mean").lerp_(h.detach().mean(0), 0.1)
            y: Tensor = self.last(h - self.get_buffer("mean"))
            return y

    model = Counting().eval()
    state = copy.deepcopy(model.state_dict())
    graph = trace(model, X)
    measure(model, X, latency=True, memory=True)
    assert same(model, state)
    graph.apply(Grow("first", units=1), compensate=X).undo()
    graph.apply(Shrink("first", remove=[2]), compensate=X).undo()
    assert same(model, state)


def test_what_classes_and_deeper_dicts_keep_of_a_pass_is_no_shell() -> None:
    class Remembering(nn.Module):
        of_all: ClassVar[dict[int, Tensor]] = {}

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
            self.own: dict[str, dict[int, Tensor]] = {"ramps": {}}

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            for kept in (self.of_all, self.own["ramps"]):
                if h.shape[1] not in kept:
                    kept[h.shape[1]] = torch.arange(h.shape[1], device=h.device) / 6
                h = h * kept[h.shape[1]]
            y: Tensor = self.last(h)
            return y

    model = Remembering()
    trace(model, X)
    assert model(X).shape == (16, 2)


def test_a_default_device_is_none_of_our_business() -> None:
    model = mlp()
    graph = trace(model, X)
    with torch.device("meta"):
        graph.apply([Grow("0", units=2), Shrink("2", remove=[1])], compensate=X)
        graph.apply(Grow("2", units=2, init="split"))
    assert model(X).shape == (16, 2)


def test_a_block_that_acts_on_other_inputs_is_not_inserted() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    with torch.no_grad():
        net.get_parameter("0.bias").add_(3)  # on these inputs nothing is below zero
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(EditError, match="on other inputs"):
        trace(net, torch.rand(8, 4)).apply(Insert("0", like="1"))
    assert same(net, state)


def test_a_width_that_would_be_squeezed_away_keeps_two_units() -> None:
    class Squeezed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.squeeze()

    layers = [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), Squeezed(), nn.Linear(4, 2)]
    graph = trace(nn.Sequential(*layers), torch.randn(2, 3, 8, 8))
    with pytest.raises(EditError, match="at least 2 must stay"):
        graph.apply(Shrink("0", keep=[0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"edit": "mask", "parameter": "w", "shape": [2], "kept": [7]}]', "IndexError: index 7"),
        ('[{"edit": "mask", "parameter": "w", "shape": [-2], "kept": [0]}]', "RuntimeError.* -2"),
        ('[{"edit": "grow", "group": "0", "units": 1, "exact": "no"}]', "exact is 'no'"),
        ('[{"edit": "grow", "group": 0, "units": 1}]', "group is 0"),
        ('[{"edit": "grow", "group": "0", "units": 1, "init": "magic"}]', "'magic'"),
        ('{"edit": "grow"}', "not a plan: TypeError"),
        ("[null]", "not a plan: TypeError"),
    ],
)
def test_text_that_is_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        plan_from_json(text)


def test_what_cannot_be_traced_is_said() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> object:
            return {len: self.last(x)}.keys()

    with pytest.raises(TraceError, match="no tensor is found"):
        trace(Hidden(), X)
    with pytest.raises(TraceError, match="no parameters"):
        trace(nn.Sequential(), X)
    with pytest.raises(UnknownNameError, match="unit of attention"):
        trace(mlp(), X, heads=cast(Any, "head"))
    assert list(trace(mlp(), X, fixed="0").widths) == ["2"]


def test_vmap_in_a_forward_pass_is_not_followed() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.vmap(self.last)(self.first(x))
            return y

    assert trace(Mapped(), X).widths == {}
