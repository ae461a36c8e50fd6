"""What tracing finds, and what it refuses to guess."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.errors import EditError, TraceError, UnknownNameError
from dynopt_ray.structure import Grow, Shrink, trace
from dynopt_ray.structure.tracing.forward import Inputs
from tests.structure.zoo import NETWORKS, Attention, Sizes, trained


@pytest.mark.parametrize("name", NETWORKS)
def test_finds_every_width(name: str) -> None:
    model, inputs = trained(name)
    assert trace(model, inputs).widths == NETWORKS[name].widths


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_of_one_shows_the_same_widths(name: str) -> None:
    model, inputs = trained(name)
    assert trace(model, inputs[:1]).widths == NETWORKS[name].widths


class ClassToken(nn.Module):
    """A vision transformer's start: a token and positions, both with a batch of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = x + self.attention(x, x, x, need_weights=False)[0]
        out: Tensor = self.head(x[:, 0])
        return out


@pytest.mark.parametrize("batch", [1, 2])
def test_the_batch_of_a_class_token_is_no_width(batch: int) -> None:
    model = nn.Sequential(nn.Linear(3, 8), ClassToken())
    graph = trace(model, torch.randn(batch, 4, 3))
    assert graph.widths == {"0": 2}
    before = model(x := torch.randn(batch, 4, 3))
    graph.apply([Grow("0", units=1)])
    assert torch.allclose(model(x), before, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_leaves_network_and_random_state_alone(name: str) -> None:
    model, inputs = trained(name)
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = {m: {**vars(m)} for m in model.modules()}
    random_state = torch.get_rng_state()
    trace(model, inputs)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert attributes == {m: {**vars(m)} for m in model.modules()}
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_slices_say_where_each_unit_lies() -> None:
    model, inputs = trained("vgg")
    group = trace(model, inputs)["3"]
    slices = {(s.parameter, s.dim): s for s in group.slices}
    assert slices.keys() == {
        *(("3.weight", 0), ("3.bias", 0), ("9.weight", 1)),
        *((f"4.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")),
    }
    assert slices["3.weight", 0].role == "out"
    assert slices["4.weight", 0].role == "scale"
    read = slices["9.weight", 1]
    assert read.role == "in"
    assert read.positions.dtype == torch.long
    assert torch.equal(read.positions, torch.arange(8 * 16).reshape(8, 16))


def test_group_is_found_by_any_of_its_producers() -> None:
    model, inputs = trained("resnet")
    graph = trace(model, inputs)
    assert graph["1.conv2"] is graph["0"]
    assert graph["2.shortcut"] is graph["2.conv2"]


def test_fused_heads_are_units() -> None:
    model, inputs = trained("attention")
    group = trace(model, inputs)["qkv"]
    positions = next(s.positions for s in group.slices if s.parameter == "qkv.weight")
    first_head = [0, 1, 2, 3, 12, 13, 14, 15, 24, 25, 26, 27]
    assert positions[0].tolist() == first_head
    graph = trace(model, inputs, heads="dims")
    assert graph["qkv"].width == 4


def test_attributes_that_forward_uses_follow() -> None:
    model, inputs = trained("attention")
    assert isinstance(model, Attention)
    trace(model, inputs).apply([Shrink("qkv", remove=[1])])
    assert model.num_heads == 2
    model, inputs = trained("sizes")
    assert isinstance(model, Sizes)
    trace(model, inputs).apply([Grow("conv", units=2)])
    assert (model.flat, model.unrelated) == (6 * 36, 4)


@pytest.mark.parametrize(
    ("name", "module", "attributes"),
    [
        ("vgg", "9", {"in_features": 15 * 16, "out_features": 10}),
        ("vgg", "4", {"num_features": 15}),
        ("mobile", "3", {"in_channels": 13, "out_channels": 13, "groups": 13}),
        ("mobile", "6", {"in_channels": 13, "out_channels": 26, "groups": 13}),
        ("shuffle", "conv1", {"in_channels": 22, "out_channels": 12, "groups": 2}),
        ("group_norm", "1", {"num_channels": 33, "num_groups": 11}),
        ("text", "embedding", {"embedding_dim": 13}),
    ],
)
def test_attributes_of_layers_follow(name: str, module: str, attributes: dict[str, int]) -> None:
    model, inputs = trained(name)
    graph = trace(model, inputs)
    first = {"vgg": "3", "shuffle": "stem"}.get(name, graph.groups[0].name)
    graph.apply([Grow(first, units=7)])
    layer = model.get_submodule(module)
    assert {key: getattr(layer, key) for key in attributes} == attributes


def test_says_why_something_is_fixed() -> None:
    model, inputs = trained("mlp")
    graph = trace(model, inputs, fixed=["2"])
    assert graph.widths == {"0": 12}
    assert "output" in graph.fixed["4"]
    assert "caller" in graph.fixed["2"]
    assert "data" in graph.fixed["0.weight[1]"]
    with pytest.raises(EditError, match="'4' cannot be resized: it is the network's output"):
        graph["4"]
    with pytest.raises(UnknownNameError, match="Known: 0"):
        graph["nothing"]
    with pytest.raises(UnknownNameError, match=r"Did you mean '2\.weight'"):
        trace(model, inputs, fixed=["2.weigth"])


class _Through(nn.Module):
    """A hidden width of 6 that passes through one operation."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.second = nn.Linear(6, 2)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.operation(self.first(x)))
        return out


class _Opaque(torch.autograd.Function):
    """An operation of the user's own, which no trace can look into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x * torch.arange(6.0, device=x.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        del ctx
        return gradients[0]


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda x: x.view(-1, 6), "written into the forward pass"),
        (lambda x: x.view(-1, 2, 3).flatten(1), "written into the forward pass"),
        (lambda x: torch.fft.fft(x).real, "a Fourier transform runs along it"),
        (lambda x: torch.expand_copy(x, x.shape), "no rule for the operation"),
        (lambda x: x + torch.arange(6, device=x.device), "combined with data"),
        (lambda x: x + torch.arange(x.shape[1], device=x.device), "combined with data"),
        (lambda x: x.tril(), "triangle"),
        (lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1), "lie in another order"),
        (lambda x: torch.cat([x[:, 2:], x[:, :2]], 1), "groups its units differently"),
        (lambda x: x.roll(1, 1), "another order"),
        # A rotation that shows only when the first unit goes.
        (lambda x: torch.cat([x, x], 1)[:, 1 : x.shape[1] + 1], "lie in another order"),
        (lambda x: torch.cat([x, x], 1)[:, x.shape[1] - 1 : -1], "lie in another order"),
        (lambda x: x[:, [0, 1, 2, 3, 5, 4]], "indexed by a tensor"),
        (lambda x: torch.flip(x, [1]), "another order"),
        (lambda x: torch.cat([x[:, :2], x[:, 2:]], 1)[:, :6], "written into the forward pass"),
        (_Opaque.apply, "combined with data"),
    ],
)
def test_never_guesses(operation: Callable[[Tensor], Tensor], reason: str) -> None:
    graph = trace(_Through(operation), torch.randn(4, 3))
    assert "first" not in graph.widths
    assert reason in graph.fixed["first"]


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + torch.zeros(x.shape[1], device=x.device),
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda x: x.view(x.shape[0], 1, -1).squeeze(1),
        lambda x: torch.stack([x, x]).sum(0),
        lambda x: x.unsqueeze(-1).expand(-1, -1, 4).mean(-1),
        lambda x: (
            (x[:, None] @ torch.ones(4, x.shape[1], x.shape[1], device=x.device))[:, 0] * 0 + x
        ),
        lambda x: F.pad(x, (0, 0)),
        lambda x: x.T[None].unfold(2, 2, 1).mean((0, 2, 3)) + x,
        lambda x: F.fold(F.unfold(x[..., None, None], 3, padding=1), 1, 3, padding=1)[..., 0, 0],
        lambda x: x.clone().mul_(2).relu_(),
        lambda x: F.normalize(x, dim=-1),
    ],
)
def test_follows_what_it_knows(operation: Callable[[Tensor], Tensor]) -> None:
    assert trace(_Through(operation), torch.randn(4, 3)).widths == {"first": 6}


class _NeedsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        out: Tensor = self.second(y if float(y.abs().sum()) >= 0 else -y)
        return out


def test_network_that_looks_at_values_is_traced_on_its_device() -> None:
    model = _NeedsValues()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"test_trace\.py:\d+ \(in _NeedsValues\.forward\)"):
        assert trace(model, torch.randn(4, 3)).widths == {"first": 6}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class _Auxiliary(nn.Module):
    """A second head that runs in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.second = nn.Linear(6, 2)
        self.extra = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        return (self.second(y), self.extra(y)) if self.training else self.second(y)


def test_parts_that_run_in_training_mode_only_are_traced() -> None:
    model = _Auxiliary().eval()
    graph = trace(model, torch.randn(4, 3))
    assert graph.widths == {"first": 6, "extra.0": 4}
    graph.apply([Shrink("first", keep=[0, 3])])
    model.train()(torch.randn(4, 3))


def test_refuses_what_cannot_run() -> None:
    with pytest.raises(TraceError, match=r"cannot run on these example inputs: .*shapes"):
        trace(nn.Linear(3, 4), torch.randn(2, 5))
    with pytest.raises(TraceError, match="Run it once"):
        trace(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 5))


def test_inputs_may_be_arguments_or_keywords() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"out": self.b(self.a(x)) * scale}

    keywords = {"x": torch.randn(2, 3), "scale": torch.ones(())}
    both: list[Inputs] = [(torch.randn(2, 3), torch.ones(())), keywords]
    for inputs in both:
        assert trace(Two(), inputs).widths == {"a": 4}


class _Either(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        out: Tensor = self.one(hidden) if x.sum() > 0 else self.other(hidden)
        return out


def test_warns_of_ways_that_the_inputs_did_not_lead() -> None:
    with pytest.warns(UserWarning, match="did not reach other"):
        graph = trace(_Either(), torch.ones(4, 3))
    assert not graph.groups
    assert graph.fixed["first"] == "other, which this example did not reach, may read it"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_refuses_what_is_compiled() -> None:
    model, inputs = trained("mlp")
    script: Any = torch.jit.trace
    compiled: Any
    for compiled in (torch.compile(model), script(model, inputs)):
        with pytest.raises(TraceError, match="is compiled for its current sizes"):
            trace(compiled, inputs)
    with pytest.raises(TraceError, match="not a torch module"):
        trace("network", inputs)  # type: ignore[arg-type]


def test_copies_of_sizes_are_plain_numbers() -> None:
    kept: list[Any] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.shape[1])
        return x

    trace(_Through(keep), torch.randn(4, 3))
    assert {type(copy.deepcopy(size)) for size in kept} == {int}


def test_images_of_bytes_are_named_as_the_cause() -> None:
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(TraceError, match=r"They hold torch.uint8; .*x.float\(\) / 255 for images"):
        trace(nn.Sequential(nn.Conv2d(1, 2, 3)), images)
    with pytest.raises(TraceError) as caught:
        trace(nn.Sequential(nn.Embedding(4, 2), nn.Linear(3, 1)), torch.zeros(2, 3).long())
    assert "They hold" not in str(caught.value)
