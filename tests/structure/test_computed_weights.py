"""Weights that a forward pass computes: normalised, masked, modulated, summed. New units learn."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from dynopt_ray.structure import Grow, Shrink, trace
from dynopt_ray.structure.plans.edits import Init
from dynopt_ray.structure.tracing.forward import Inputs, run

INITS: Sequence[Init] = ("fresh", "split")


def grows_exactly_and_learns(model: nn.Module, inputs: Inputs, init: Init, *names: str) -> None:
    """Grow each group alone; the output stays, also in train mode, and new units learn."""
    with torch.no_grad():
        run(model, inputs)  # hooks compute weights, of which copies can be made
    for name in names:
        old, new = copy.deepcopy(model), copy.deepcopy(model)
        graph = trace(new, inputs)
        group = graph[name]
        assert group.exact_growth, group.why_inexact
        graph.apply(Grow(name, units=2 * group.step, init=init))
        for mode in (False, True):
            after = run(new.train(mode), inputs)
            expected = run(old.train(mode), inputs)
            torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
        _learns(new, inputs, graph[name].slices, graph.tensors())


def _learns(model: nn.Module, inputs: Inputs, slices: Any, tensors: dict[str, Tensor]) -> None:
    """Two steps give a gradient to the weights of the new units in each tensor that learns."""
    seen: dict[str, Tensor] = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        output = run(model, inputs)
        (output - torch.arange(output.numel()).reshape(output.shape)).square().mean().backward()
        for s in slices:
            gradient = tensors[s.parameter].grad
            if gradient is not None:
                new = gradient.index_select(s.dim, s.positions[-1])
                seen[f"{s.parameter}[{s.dim}]"] = seen.get(s.parameter, 0) + new.abs().sum()
        optimizer.step()
    assert seen
    assert all(bool(total.isfinite()) and bool(total > 0) for total in seen.values()), seen


LAYERS: dict[str, tuple[Callable[..., nn.Module], Tensor]] = {
    "linear": (nn.Linear, torch.randn(3, 5)),
    "convolution": (lambda i, o: nn.Conv1d(i, o, 3, padding=1), torch.randn(3, 5, 9)),
    "transposed": (lambda i, o: nn.ConvTranspose1d(i, o, 4, 2, 1), torch.randn(3, 5, 9)),
}


def normalised(kind: str, dim: int | None, *, old: bool) -> nn.Sequential:
    torch.manual_seed(0)
    make, _ = LAYERS[kind]
    norm: Any = nn.utils.weight_norm if old else parametrizations.weight_norm
    first, second = norm(make(5, 8), dim=dim), norm(make(8, 6), dim=dim)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), make(6, 2))


@pytest.mark.filterwarnings("ignore:`?torch.nn.utils.weight_norm")
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("kind", LAYERS)
def test_weight_norm_grows_exactly(kind: str, dim: int | None, old: bool, init: Init) -> None:
    model = normalised(kind, dim, old=old)
    grows_exactly_and_learns(model, LAYERS[kind][1], init, "0", "2")


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("kind", LAYERS)
def test_weight_norm_shrinks_like_a_mask(kind: str, dim: int | None) -> None:
    model, x = normalised(kind, dim, old=False), LAYERS[kind][1]
    with torch.no_grad():
        hidden = model[1](model[0](x))
        hidden[:, [1, 4]] = 0
        expected = model[2:](hidden)
    trace(model, x).apply(Shrink("0", remove=[1, 4]))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_gain_is_zero_where_a_norm_would_be() -> None:
    model = normalised("transposed", 0, old=False)
    trace(model, LAYERS["transposed"][1]).apply(Grow("0", units=2))
    weight: Any = model[2].parametrizations.weight  # type: ignore[union-attr]
    assert bool((weight.original0[8:] == 0).all())
    assert bool((weight.original1[8:] != 0).any())


@pytest.mark.filterwarnings("ignore:`?torch.nn.utils.spectral_norm")
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("kind", LAYERS)
def test_spectral_norm_reads_new_units_exactly(
    kind: str, norm: Callable[[nn.Module], nn.Module], init: Init
) -> None:
    make, x = LAYERS[kind]
    model = nn.Sequential(make(5, 8), nn.Tanh(), norm(make(8, 6)), nn.Tanh(), make(6, 2))
    grows_exactly_and_learns(model, x, init, "0")
    made = trace(model, x)["2"]
    assert not made.exact_growth
    assert "dot` in '2" in made.why_inexact


def pruned() -> Any:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()]
    model = nn.Sequential(*first, nn.Flatten(), nn.Linear(54, 7), nn.ReLU(), nn.Linear(7, 2))
    torchs: Any = prune  # not annotated
    for name, share in (("0", 0.5), ("1", 0.4), ("3", 0.5), ("6", 0.5)):
        torchs.l1_unstructured(model.get_submodule(name), "weight", share)
    torchs.l1_unstructured(model[6], "weight", 0.2)
    torchs.random_unstructured(model[3], "bias", 0.5)
    torchs.ln_structured(model[8], "weight", 0.5, n=2, dim=1)
    return model


IMAGES = torch.randn(2, 3, 7, 7)


@pytest.mark.parametrize("init", INITS)
def test_pruned_layers_grow_exactly(init: Init) -> None:
    model = pruned().eval()
    with torch.no_grad():
        before = model(IMAGES)
    graph = trace(model, IMAGES)
    assert [(g.name, g.exact_growth) for g in graph] == [("0", True), ("3", True), ("6", True)]
    for name in graph.widths:
        receipt = graph.apply(Grow(name, units=3, init=init))
        torch.testing.assert_close(model(IMAGES), before, rtol=1e-4, atol=1e-5)
        receipt.undo()


@pytest.mark.parametrize("init", INITS)
def test_new_units_of_pruned_layers_are_not_masked(init: Init) -> None:
    model = pruned()
    old = {name: buffer.clone() for name, buffer in model.named_buffers() if "mask" in name}
    graph = trace(model, IMAGES)
    graph.apply([Grow(name, units=3, init=init) for name in graph.widths])
    for name, mask in old.items():
        new = model.get_buffer(name)
        part = tuple(slice(0, size) for size in mask.shape)
        if name != "6.weight_mask":  # there, new columns lie between the old ones
            assert torch.equal(new[part], mask)
        assert int((new == 0).sum()) == int((mask == 0).sum())


def test_pruned_layers_show_their_new_weight_at_once() -> None:
    model = pruned()
    graph = trace(model, IMAGES)
    old = model[0].weight
    receipt = graph.apply(Shrink("0", remove=[2]))
    assert model[0].weight.shape == (7, 3, 3, 3)
    shown = model[3].weight
    with torch.no_grad():
        model(IMAGES)
    assert torch.equal(shown, model[3].weight)
    receipt.undo()
    assert model[0].weight.shape == old.shape


class Worded(nn.Module):
    """A table and a recurrent layer, one of whose weights is computed."""

    def __init__(self, norm: Callable[..., Any], owner: str, weight: str) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(20, 7), nn.LSTM(7, 6, batch_first=True)
        self.last = nn.Linear(6, 2)
        norm(self.get_submodule(owner), weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.cell(self.table(x))[0])
        return y


def masking(module: nn.Module, name: str) -> None:
    pruning: Any = prune  # not annotated
    pruning.l1_unstructured(module, name, 0.4)


@pytest.mark.filterwarnings("ignore:`?torch.nn.utils.weight_norm")
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("norm", [masking, nn.utils.weight_norm])
@pytest.mark.parametrize(
    ("owner", "weight"), [("cell", "weight_ih_l0"), ("cell", "weight_hh_l0"), ("table", "weight")]
)
def test_recurrent_layers_and_tables(
    owner: str, weight: str, norm: Callable[..., Any], init: Init
) -> None:
    torch.manual_seed(0)
    x = torch.randint(20, (3, 5))
    grows_exactly_and_learns(Worded(norm, owner, weight), x, init, "table", "cell")


def test_a_table_with_a_spectral_norm_is_refused() -> None:
    group = trace(Worded(parametrizations.spectral_norm, "table", "weight"), torch.ones(3, 5).int())
    assert not group["table"].exact_growth


class Masked(nn.Linear):
    """A layer with a mask of its own, in a buffer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", (torch.rand(outputs, inputs) > 0.4).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.get_buffer("mask") * self.weight, self.bias)


@pytest.mark.parametrize("init", INITS)
def test_masks_in_buffers(init: Init) -> None:
    model = nn.Sequential(Masked(6, 12), nn.Tanh(), Masked(12, 8), nn.Tanh(), Masked(8, 3))
    x = torch.randn(4, 6)
    before = model(x)
    graph = trace(model, x)
    assert all(group.exact_growth for group in graph)
    graph.apply([Grow(name, units=2, init=init) for name in graph.widths])
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    if init == "fresh":
        assert bool(model[0].get_buffer("mask")[12:].all())
        assert bool(model[2].get_buffer("mask")[:, 12:].all())


class Splines(nn.Module):
    """Splines on a grid of each input, as in Kolmogorov-Arnold networks."""

    def __init__(self, inputs: int, outputs: int, *, learned: bool) -> None:
        super().__init__()
        steps = torch.arange(-3.0, 9.0) * 0.4 - 1 + 0.05 * torch.rand(inputs, 1)
        if learned:
            self.grid = nn.Parameter(steps)
        else:
            self.register_buffer("grid", steps)
        self.base = nn.Parameter(torch.randn(outputs, inputs))
        self.splines = nn.Parameter(torch.randn(outputs, inputs, 8))
        self.scaler = nn.Parameter(torch.randn(outputs, inputs))

    def bases(self, x: Tensor) -> Tensor:
        grid, x = self.grid, x.unsqueeze(-1)
        bases = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
        for k in range(1, 4):
            rising = (x - grid[:, : -(k + 1)]) / (grid[:, k:-1] - grid[:, : -(k + 1)])
            falling = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:-k])
            bases = rising * bases[:, :, :-1] + falling * bases[:, :, 1:]
        return bases

    def forward(self, x: Tensor) -> Tensor:
        splines = (self.splines * self.scaler.unsqueeze(-1)).flatten(1)
        return F.linear(F.silu(x), self.base) + F.linear(self.bases(x).view(len(x), -1), splines)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("learned", [False, True])
def test_grids_of_splines(learned: bool, init: Init) -> None:
    torch.manual_seed(0)
    x = torch.rand(5, 4) - 0.5
    layers = Splines(4, 8, learned=learned), Splines(8, 2, learned=learned)
    model: Any = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    graph = trace(model, x)
    assert graph["0.base"].width == 8
    grows_exactly_and_learns(model, x, init, graph["0.base"].name)
    graph.apply(Grow("0.base", units=3, init=init))
    assert bool((model[2].grid.diff(dim=1) > 0).all())


class Summed(nn.Module):
    """Each input has a function of its own for each output; they are scaled and summed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.curve = nn.Parameter(torch.randn(inputs, outputs, 4))
        self.scale, self.other = (nn.Parameter(torch.rand(inputs, outputs)) for _ in range(2))
        self.mask = nn.Parameter(torch.ones(inputs, outputs), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        powers = torch.stack([x, x.tanh(), x.sin(), x.cos()], dim=-1)
        curves = torch.einsum("nik,iok->nio", powers, self.curve)
        y = self.scale[None] * F.silu(x)[:, :, None] + self.other[None] * curves
        return (self.mask[None] * y).sum(dim=1)


@pytest.mark.parametrize("init", INITS)
def test_sums_of_scaled_units(init: Init) -> None:
    model: Any = nn.Sequential(Summed(4, 8), nn.Tanh(), Summed(8, 2))
    graph = trace(model, torch.randn(5, 4))
    name = next(iter(graph.widths))
    grows_exactly_and_learns(model, torch.randn(5, 4), init, name)
    graph.apply(Grow(name, units=1))
    assert bool(model[2].mask.all())


class Modulated(nn.Module):
    """A convolution whose weights are scaled by a style and then normalised."""

    def __init__(self, inputs: int, outputs: int, *, grouped: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3))
        self.style, self.grouped = nn.Linear(7, inputs), grouped

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        style = self.style(w)
        weight = self.weight * style[:, None, :, None, None]
        norm = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
        if not self.grouped:
            x = F.conv2d(x * style[:, :, None, None], self.weight.squeeze(0), padding=1)
            return x * norm[:, :, None, None]
        weight = (weight * norm[:, :, None, None, None]).flatten(0, 1)
        x = F.conv2d(x.reshape(1, -1, height, width), weight, padding=1, groups=batch)
        return x.view(batch, -1, height, width)


class Generator(nn.Module):
    def __init__(self, *, grouped: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.one = Modulated(8, 6, grouped=grouped)
        self.two = Modulated(6, 5, grouped=grouped)
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = F.leaky_relu(self.one(self.first(x), w), 0.2)
        y: Tensor = self.last(F.leaky_relu(self.two(x, w), 0.2))
        return y


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("grouped", [False, True])
def test_modulated_convolutions(grouped: bool, init: Init) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 5, 5), torch.randn(2, 7))
    grows_exactly_and_learns(Generator(grouped=grouped), inputs, init, "first", "one", "two")


class LowRank(nn.Module):
    """Adds a product of two small matrices to a weight."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(outputs, 2))
        self.down = nn.Parameter(torch.randn(2, inputs))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


@pytest.mark.parametrize("init", INITS)
def test_low_rank_updates_of_weights(init: Init) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    parametrize.register_parametrization(model[2], "weight", LowRank(6, 8))
    grows_exactly_and_learns(model, torch.randn(3, 5), init, "0", "2")


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "divided by its norm": lambda w: w / w.norm(dim=1, keepdim=True),
    "normalised": lambda w: F.normalize(w, dim=1),
    "divided by its size": lambda w: w / w.square().sum(1, keepdim=True).sqrt(),
}


class Normalising(nn.Module):
    def __init__(self, norm: Callable[[Tensor], Tensor], *, transposed: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(6, 2)
        self.weight = nn.Parameter(torch.randn((8, 6) if transposed else (6, 8)))
        self.norm, self.transposed = norm, transposed

    def forward(self, x: Tensor) -> Tensor:
        weight = self.norm(self.weight)
        x = F.linear(self.first(x).tanh(), weight.T if self.transposed else weight)
        y: Tensor = self.last(x.tanh())
        return y


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", NORMS)
def test_weights_divided_by_their_norm(name: str, init: Init) -> None:
    grows_exactly_and_learns(Normalising(NORMS[name]), torch.randn(3, 5), init, "first")


@pytest.mark.parametrize("name", ["divided by its norm", "divided by its size"])
def test_a_norm_of_each_unit_would_divide_zero_by_zero(name: str) -> None:
    group = trace(Normalising(NORMS[name], transposed=True), torch.randn(3, 5))["first"]
    assert not group.exact_growth
    assert "0/0" in group.why_inexact
