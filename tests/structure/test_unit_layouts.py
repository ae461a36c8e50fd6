"""Units of layers and of single units that lie in several orders."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Grow, Shrink, measure, trace

DEPTHWISE = {
    "one": (nn.ConvTranspose1d(6, 6, 4, stride=2, groups=6), (2, 5, 7)),
    "two each": (nn.ConvTranspose2d(6, 12, 3, groups=6, bias=False), (2, 5, 4, 4)),
    "volume": (nn.ConvTranspose3d(6, 6, 2, groups=6), (2, 5, 3, 3, 3)),
}


@pytest.mark.parametrize("name", DEPTHWISE)
def test_channels_of_depthwise_transposed_convolutions_are_units(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = DEPTHWISE[name]
    kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
    layers = [kind(5, 6, 1), layer, nn.ReLU(), kind(layer.out_channels, 3, 1)]
    model, x = nn.Sequential(*layers).double(), torch.randn(shape, dtype=torch.float64)
    graph, before = trace(model, x), model(x)
    assert graph.widths == {"0": 6}
    assert graph.cost().flops == measure(model, x).flops
    graph.apply(Grow("0", units=2))
    torch.testing.assert_close(model(x), before)
    assert (layer.in_channels, layer.groups, len(layer.weight)) == (8, 8, 8)
    assert graph.cost().flops == measure(model, x).flops
    graph.apply(Shrink("0", remove=[6, 7]))
    torch.testing.assert_close(model(x), before)
    graph.apply(Shrink("0", keep=[1, 4]))
    assert model(x).shape == before.shape


def test_each_part_of_a_concatenation_is_resized_apart_by_what_reads_it_depthwise() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv1d(5, 4, 1), nn.Conv1d(5, 6, 1)
            self.depthwise = nn.ConvTranspose1d(10, 10, 3, padding=1, groups=10)
            self.last = nn.Conv1d(10, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.depthwise(torch.cat([self.one(x), self.other(x)], 1)))
            return y

    model = Beside()
    graph = trace(model, torch.randn(2, 5, 6))
    assert graph.widths == {"one": 4, "other": 6}
    graph.apply([Shrink("one", keep=[0]), Grow("other", units=1)])
    assert model.depthwise.groups == 8
    assert model(torch.randn(2, 5, 6)).shape == (2, 3, 6)


class OneUnit(nn.Module):
    """Makes four channels that are a single unit: they are scaled in pairs, and divided in halves.

    With another unit, the first half of the channels of each of them comes first, and then the
    other half. `interleaved` gives the four channels of each unit beside one another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)
        self.scales = nn.Parameter(torch.rand(2, 1) + 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        y = (y.unflatten(-1, (-1, 2)) * self.scales).flatten(-2)
        one, other = y.chunk(2, -1)
        return torch.cat([one, other.tanh()], -1), torch.stack([one, other], -1).flatten(-2)


class InTwoOrders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.made, self.plain, self.interleaved = OneUnit(), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, interleaved = self.made(x)
        out: Tensor = self.plain(y) + self.interleaved(interleaved)
        return out


class BesideOneUnit(nn.Module):
    def __init__(self, kind: type[nn.GRU]) -> None:
        super().__init__()
        self.made, self.other = OneUnit(), nn.Linear(5, 6)
        self.recurrent, self.last = kind(10, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.made(x)[0], self.other(x)], -1)
        out: Tensor = self.last(self.recurrent(y)[0])
        return out


def test_a_single_unit_may_lie_in_two_orders() -> None:
    torch.manual_seed(0)
    model, x = InTwoOrders(), torch.randn(2, 4, 5)
    graph, before = trace(model, x), model(x)
    assert graph.widths == {"made.layer": 1}
    graph.apply(Grow("made.layer", units=2))
    torch.testing.assert_close(model(x), before)
    graph.apply(Shrink("made.layer", keep=[0]))
    torch.testing.assert_close(model(x), before)


class PairsInHeads(nn.Module):
    """Six channels are scaled in pairs and viewed as two heads of three, so they are one unit.

    Twelve channels are two heads of six: the first head has what was in both heads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.scales = nn.Parameter(torch.rand(3, 1) + 0.5)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.made(x).unflatten(-1, (-1, 2)) * self.scales).flatten(-2)
        out: Tensor = self.last(self.attention(y, y, y, need_weights=False)[0])
        return out


def test_growth_is_not_exact_if_a_view_divides_a_unit_otherwise() -> None:
    model, x = PairsInHeads(), torch.randn(2, 4, 5)
    graph = trace(model, x)
    assert graph["made"].width == 1
    assert not graph["made"].exact_growth
    with pytest.raises(EditError, match="a view divides the coordinates"):
        graph.apply(Grow("made", units=1))
    graph.apply(Grow("made", units=1, exact=False))
    assert (model.made.out_features, model.attention.num_heads) == (12, 2)
    assert model(x).shape == (2, 4, 3)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_what_lies_beside_a_single_unit_is_resized(kind: type[nn.GRU]) -> None:
    """The size that a recurrent layer checks counts the channels of the unit and others."""
    model, x = BesideOneUnit(kind), torch.randn(2, 4, 5)
    graph = trace(model, x)
    assert graph.widths == {"made.layer": 1, "other": 6, "recurrent": 4}
    before = model(x)
    graph.apply([Grow("made.layer", units=1), Grow("other", units=3)])
    assert model.recurrent.input_size == 17
    torch.testing.assert_close(model(x), before)


def test_all_producers_of_a_width_that_is_fixed_say_why() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.last = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last((self.one(x) + self.other(x)).view(-1, 6))
            return y

    graph = trace(Sum(), torch.randn(2, 5))
    assert not graph.groups
    for name in ("one", "other"):
        with pytest.raises(EditError, match="its size is written into the forward pass"):
            graph[name]


class PartlyTurned(nn.Module):
    """Attention of 3 heads; positions turn the first coordinates of queries and keys."""

    def __init__(self, turned: int, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 12) for _ in range(3))
        self.last, self.turned, self.join = nn.Linear(12, 3), turned, join

    def forward(self, x: Tensor) -> Tensor:
        heads = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k))
        q, k = map(self.with_positions, heads)
        v = self.v(x).unflatten(-1, (-1, 4)).transpose(1, 2)
        mixed = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2)
        out: Tensor = self.last(mixed.flatten(2))
        return out

    def with_positions(self, y: Tensor) -> Tensor:
        places = torch.arange(y.shape[-2], device=y.device, dtype=y.dtype)
        angles = places[:, None] * torch.arange(1, self.turned + 1, device=y.device)
        return self.join(y[..., : self.turned] * angles.cos(), y[..., self.turned :])


JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "turned first": lambda turned, rest: torch.cat([turned, rest], -1),
    "rest first": lambda turned, rest: torch.cat([rest, turned], -1),
    "three parts": lambda turned, rest: torch.cat([turned[..., :1], turned[..., 1:], rest], 3),
}


@pytest.mark.parametrize("turned", [2, 4])
@pytest.mark.parametrize("join", JOINS)
def test_heads_are_units_if_positions_turn_a_part_of_their_coordinates(
    join: str, turned: int
) -> None:
    torch.manual_seed(0)
    model, x = PartlyTurned(turned, JOINS[join]), torch.randn(2, 4, 5)
    graph, before = trace(model, x), model(x)
    assert graph.widths == {"q": 3}
    graph.apply(Grow("q", units=2))
    torch.testing.assert_close(model(x), before)
    graph.apply(Shrink("q", keep=[0, 3]))
    assert model(x).shape == before.shape


def test_a_layer_that_reads_a_single_unit_alone_follows() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.made, self.last = OneUnit(), nn.Linear(3, 2)
            self.recurrent = nn.GRU(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.recurrent(self.made(x)[0])[0])
            return out

    model, x = Sequence(), torch.randn(2, 4, 5)
    graph, before = trace(model, x), model(x)
    assert graph.widths == {"made.layer": 1, "recurrent": 3}
    graph.apply(Grow("made.layer", units=1))
    assert (model.made.layer.out_features, model.recurrent.input_size) == (8, 8)
    torch.testing.assert_close(model(x), before)


class Tied(nn.Module):
    """Two layers share a weight, and an embedding shares one with the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.last.weight, self.other.weight = self.words.weight, self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.other(self.one(self.words(x)).tanh()))
        return out


def test_all_layers_that_share_a_weight_follow() -> None:
    model, x = Tied(), torch.tensor([[1, 4, 2]])
    graph = trace(model, x)
    assert graph.widths == {"words": 6}
    graph.apply(Shrink("words", keep=[0, 2, 3, 5]))
    layers = (model.words.embedding_dim, model.last.in_features, model.other.in_features)
    assert (*layers, model.one.out_features, model.other.out_features) == (4, 4, 4, 4, 4)
    assert model(x).shape == (1, 3, 7)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_depthwise_layer_that_is_called_by_its_weight_follows(transposed: bool) -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = nn.ConvTranspose1d if transposed else nn.Conv1d
            self.first, self.last = nn.Conv1d(5, 6, 1), nn.Conv1d(6, 3, 1)
            self.depthwise = kind(6, 6, 3, padding=1, groups=6)

        def forward(self, x: Tensor) -> Tensor:
            convolve = torch.conv_transpose1d if transposed else torch.conv1d
            weight, bias = self.depthwise.weight, self.depthwise.bias
            y = self.first(x)
            out: Tensor = self.last(convolve(y, weight, bias, padding=1, groups=y.shape[1]))
            return out

    model = Called()
    graph = trace(model, torch.randn(2, 5, 4))
    graph.apply(Shrink("first", remove=[1, 2]))
    assert (model.depthwise.in_channels, model.depthwise.groups) == (4, 4)
    assert model.depthwise(torch.randn(2, 4, 4)).shape == (2, 4, 4)
