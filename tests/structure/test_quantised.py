"""Networks that torch has prepared for quantisation: state per channel follows its channel."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.structure import Graph, Grow, Shrink, measure, trace
from tests.structure.operations import INITS, unread, values

quantization: Any = torch.ao.quantization  # untyped in torch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*reduce_range.*"),
]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(self.quant(x)))))
        out: Tensor = self.dequant(self.last(x.mean((2, 3))))
        return out


class Fused(Plain):
    """Convolutions with BatchNorms that are folded into their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other_norm = nn.BatchNorm2d(8), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.other_norm(self.second(F.relu(self.norm(self.first(self.quant(x))))))
        out: Tensor = self.dequant(self.last(x.mean((2, 3))))
        return out


def _separate() -> Any:
    """Observers and fake quantisers as modules of their own, not fused into one operation."""
    return quantization.QConfig(
        activation=quantization.default_fake_quant,
        weight=quantization.default_per_channel_weight_fake_quant,
    )


SETTINGS: dict[str, Callable[[], Any]] = {
    "per channel": lambda: quantization.get_default_qat_qconfig("fbgemm"),
    "per tensor": lambda: quantization.get_default_qat_qconfig("qnnpack"),
    "separate": _separate,
}


def _images() -> Tensor:
    return torch.randn(4, 3, 6, 6)


def _prepared(
    setting: str, make: Callable[[], Any] = Plain, *, num_passes: int = 2
) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model: Any = make().train()
    if isinstance(model, Fused):
        model = quantization.fuse_modules_qat(model, [["first", "norm"], ["second", "other_norm"]])
    model.qconfig = SETTINGS[setting]()
    model = quantization.prepare_qat(model)
    inputs = _images()
    for _ in range(num_passes):
        model(inputs)
    return model.eval(), inputs


def _frozen(model: nn.Module) -> None:
    model.apply(quantization.disable_observer)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The state per channel of the first layer's fake quantiser."""
    state = model.state_dict()
    names = [name for name in state if name.startswith("first.weight_fake_quant")]
    return {name: state[name].clone() for name in names if state[name].shape == (8,)}


@pytest.mark.parametrize("make", [Plain, Fused])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_state_of_channels_follows(setting: str, frozen: bool, make: Callable[[], Any]) -> None:
    model, inputs = _prepared(setting, make)
    if frozen:
        _frozen(model)
    graph = trace(model, inputs)
    assert graph.widths == {"first": 8, "second": 6}
    assert [group.producers for group in graph] == [("first",), ("second",)]
    assert graph.cost() == measure(model, inputs)
    before = _state(model)
    optimizer = torch.optim.Adam(model.parameters())
    graph.apply([Shrink("first", remove=[0])], optimizer=optimizer)
    after = model.state_dict()
    kinds = {name.rpartition(".")[2] for name in before}
    assert kinds == (
        {"scale", "zero_point", "min_val", "max_val"} if setting != "per tensor" else set()
    )
    for name, value in before.items():
        assert torch.equal(after[name], value[1:])
    model.apply(quantization.enable_observer)
    model.train()(inputs).square().mean().backward()
    optimizer.step()
    graph.receipts[-1].undo()
    assert all(model.state_dict()[name].shape == (8,) for name in before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_unread_channel_leaves_exactly_once_ranges_are_frozen(setting: str) -> None:
    model, inputs = _prepared(setting)
    _frozen(model)
    graph = trace(model, inputs)
    unread(graph, "first", 3)
    before = values(model, inputs)
    graph.apply(Shrink("first", remove=[3]))
    torch.testing.assert_close(values(model, inputs), before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_growth_rounds_other_weights_and_says_so(setting: str) -> None:
    model, inputs = _prepared(setting)
    graph = trace(model, inputs)
    assert not any(group.exact_growth for group in graph)
    graph.apply(Grow("first", units=2, exact=False))
    model.train()(inputs).square().mean().backward()


class Auxiliary(Plain):
    """A head that runs in training only, so that tracing needs a second pass."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.extra(torch.ones(6, device=x.device)) if self.training else y


@pytest.mark.parametrize("make", [Plain, Auxiliary])
@pytest.mark.parametrize("setting", ["per channel", "separate"])
def test_before_the_first_pass_there_is_no_state_that_could_follow(
    setting: str, make: Callable[[], Any]
) -> None:
    model, inputs = _prepared(setting, make, num_passes=0)
    before = {name: value.shape for name, value in model.state_dict().items()}
    graph = trace(model, inputs)
    assert not graph.groups
    assert "run the network once" in graph.fixed["first"]
    measure(model, inputs)
    assert {name: value.shape for name, value in model.state_dict().items()} == before
    model(inputs)
    assert trace(model, inputs).widths == {"first": 8, "second": 6}


def test_rounded_channels_that_plain_weights_read_grow_exactly() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).train()
    model[0].qconfig = quantization.QConfig(
        activation=nn.Identity, weight=quantization.default_per_channel_weight_fake_quant
    )
    model = quantization.prepare_qat(model)
    inputs = torch.randn(4, 5)
    model(inputs)
    before = values(model.eval(), inputs)
    graph = trace(model, inputs)
    assert [group.exact_growth for group in graph] == [True]
    for init in INITS:
        graph.apply(Grow("0", units=2, init=init))
        torch.testing.assert_close(values(model, inputs), before)


def test_observers_alone_change_nothing() -> None:
    torch.manual_seed(0)
    model: Any = Plain().eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    model = quantization.prepare(model)
    graph: Graph = trace(model, _images())
    assert graph.widths == {"first": 8, "second": 6}
    assert all(group.exact_growth for group in graph)
