"""Sizes that modules keep for methods and training loops that the traced pass does not run."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.structure import Edit, Grow, Shrink, trace

State = tuple[Tensor, Tensor]
SEQUENCES = torch.randn(3, 5, 4)
ROWS = torch.randn(3, 4)


class Recurrent(nn.Module):
    """The training loop calls `begin`."""

    def __init__(self, *, stacked: bool = False) -> None:
        super().__init__()
        self.hidden_size, self.num_steps, self.image_size = 8, 8, 8
        self.cell = nn.LSTM(4, 8, batch_first=True)
        self.second = nn.LSTM(8, 8, batch_first=True) if stacked else None
        self.last = nn.Linear(8, 2)

    def begin(self, batch: int) -> State:
        return torch.zeros(1, batch, self.hidden_size), torch.zeros(1, batch, self.hidden_size)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        x, state = self.cell(x, state)
        if self.second is not None:
            x, _ = self.second(x)
        y: Tensor = self.last(x[:, -1])
        return y


class OwnName(nn.Module):
    """No layer has an attribute of this name, but a method makes tensors of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.cell, self.last = 8, nn.GRU(4, 8, batch_first=True), nn.Linear(8, 2)

    def begin(self, batch: int) -> Tensor:
        size = self.n
        return self.last.weight.new_zeros(1, batch, size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.cell(x)[0][:, -1])
        return y


class ByName(nn.Module):
    """Only the training loop uses `latent_dim`; the other attributes equal it by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.max_length, self.in_channels = 8, 8, 8
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x).relu())
        return y


class Rebuilt(nn.Module):
    """A method builds a new head for other classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body_size, self.num_classes = 8, 2
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def reset(self, num_classes: int) -> None:
        self.head = nn.Linear(self.body_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.first(x).relu())
        return y


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.state_shape = [8, 6], (1, 8)
        self.one, self.two, self.last = nn.GRUCell(4, 8), nn.GRUCell(8, 6), nn.Linear(6, 2)

    def begin(self, batch: int) -> list[Tensor]:
        return [torch.zeros(batch, size) for size in self.sizes]

    def first_state(self) -> Tensor:
        return torch.zeros(self.state_shape)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.two(self.one(x)))
        return y


class Unclear(nn.Module):
    """Two layers have this size, and nothing says which of them is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 8
        self.one, self.two, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.two(self.one(x).relu()).relu())
        return y


class Deep(nn.Module):
    """The number of layers equals a width by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.num_layers, self.hidden = 2, 8
        self.cell, self.squeeze = nn.GRU(4, 8, 2, batch_first=True), nn.Linear(8, 2)
        self.last = nn.Linear(2, 2)

    def begin(self, batch: int) -> Tensor:
        weight: Any = next(self.parameters())
        state: Tensor = weight.new(self.num_layers, batch, self.hidden).zero_()
        return state

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.squeeze(self.cell(x)[0][:, -1]))
        return y


Case = tuple[Callable[[], nn.Module], Tensor, list[Edit], dict[str, Any]]
CASES: dict[str, Case] = {
    "a layer's own name": (
        Recurrent,
        SEQUENCES,
        [Shrink("cell", remove=[0, 1])],
        {"hidden_size": 6, "num_steps": 8, "image_size": 8},
    ),
    "used by a method": (OwnName, SEQUENCES, [Grow("cell", units=2)], {"n": 10}),
    "a name of widths": (
        ByName,
        ROWS,
        [Grow("first", units=3)],
        {"latent_dim": 11, "max_length": 8, "in_channels": 8},
    ),
    "used to build": (
        Rebuilt,
        ROWS,
        [Shrink("first", remove=[3])],
        {"body_size": 7, "num_classes": 2},
    ),
    "in a list": (
        Listed,
        ROWS,
        [Shrink("one", remove=[0]), Grow("two", units=2)],
        {"sizes": [7, 8], "state_shape": (1, 7)},
    ),
    "a count of layers": (
        Deep,
        SEQUENCES,
        [Grow("squeeze", units=1), Shrink("cell", remove=[1])],
        {"num_layers": 2, "hidden": 7},
    ),
    "unclear": (Unclear, ROWS, [Shrink("one", remove=[0])], {"hidden": 8}),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_that_the_pass_does_not_use_follow(name: str) -> None:
    make, inputs, plan, expected = CASES[name]
    graph = trace(model := make(), inputs)
    before = {key: getattr(model, key) for key in expected}
    receipt = graph.apply(plan)
    assert {key: getattr(model, key) for key in expected} == expected
    receipt.undo()
    assert {key: getattr(model, key) for key in expected} == before


def test_states_made_outside_fit_after_an_edit() -> None:
    graph = trace(model := Recurrent(), SEQUENCES)
    graph.apply([Shrink("cell", remove=[0, 1])])
    assert model(SEQUENCES, model.begin(3)).shape == (3, 2)


def test_one_size_of_two_layers_ties_them() -> None:
    graph = trace(model := Recurrent(stacked=True), SEQUENCES)
    graph.apply([Shrink("cell", remove=[0, 1])])
    assert model.second is not None
    assert (model.hidden_size, model.second.hidden_size) == (6, 6)
    assert model(SEQUENCES, model.begin(3)).shape == (3, 2)


class BesideAnother(nn.Module):
    """Of the two layers whose size a method uses, one lies in another layer beside more units."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 6
        self.both, self.one, self.other = nn.Linear(4, 14), nn.Linear(4, 8), nn.Linear(4, 6)
        self.alone, self.last, self.second = nn.Linear(4, 6), nn.Linear(14, 2), nn.Linear(6, 2)

    def begin(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.n)

    def forward(self, x: Tensor) -> Tensor:
        y = self.both(x) + torch.cat([self.one(x), self.other(x)], -1)
        out: Tensor = self.last(y.relu()) + self.second(self.alone(x).relu())
        return out


def test_one_size_ties_layers_of_which_one_lies_beside_another() -> None:
    graph = trace(model := BesideAnother(), ROWS)
    assert graph.widths == {"both": 8, "both#2": 6}
    graph.apply(Shrink("both#2", remove=[0, 1]))
    assert (model.n, model.other.out_features, model.alone.out_features) == (4, 4, 4)
    assert model(ROWS).shape == (3, 2)


class Loud(nn.Module):
    """An attribute of another meaning stops the pass if it follows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_parts, self.hidden_size = 8, 8
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if int(self.hidden_parts) != 8:
            raise ValueError("eight parts")
        y: Tensor = self.last(self.first(x).relu())
        return y


def test_only_an_attribute_that_stops_the_pass_does_not_follow() -> None:
    graph = trace(model := Loud(), ROWS)
    graph.apply(Shrink("first", remove=[0]))
    assert (model.hidden_parts, model.hidden_size) == (8, 7)


class Sampling(nn.Module):
    """Draws from a latent space whose size stands in one of several places."""

    def __init__(self) -> None:
        super().__init__()
        self._latent, self.options = 4, {"latent": 4}
        self.settings = SimpleNamespace(latent=4)
        self.encode, self.decode = nn.Linear(8, 8), nn.Linear(4, 8)

    @property
    def latent(self) -> int:
        return self._latent

    @property
    def read(self) -> int:
        return self.decode.in_features

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decode(self.encode(x).chunk(2, -1)[0])
        return out

    def drawn(self, noise: Tensor) -> Tensor:
        out: Tensor = self.decode(noise)
        return out


class ByProperty(Sampling):
    def sample(self, n: int) -> Tensor:
        return self.drawn(torch.randn(n, self.latent))


class ByDict(Sampling):
    def sample(self, n: int) -> Tensor:
        return self.drawn(torch.randn((n, self.options["latent"])))


class BySettings(Sampling):
    def sample(self, n: int) -> Tensor:
        return self.drawn(torch.zeros(n, self.settings.latent))


class ByNumber(Sampling):
    def sample(self, n: int) -> Tensor:
        return self.drawn(torch.randn(n, 4))


class ByLayer(Sampling):
    def sample(self, n: int) -> Tensor:
        return self.drawn(torch.randn(n, self.decode.in_features) + torch.zeros(n, self.read))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ByProperty, "self.latent"),
        (ByDict, "self.options['latent']"),
        (BySettings, "self.settings.latent"),
        (ByNumber, "4"),
    ],
)
def test_a_warning_names_sizes_that_cannot_follow(kind: type[Sampling], code: str) -> None:
    with pytest.warns(UserWarning, match=f"sample makes a tensor of size {re.escape(code)},") as w:
        trace(kind(), torch.randn(3, 8))
    assert len(w) == 1
    assert w[0].filename == __file__


def test_sizes_of_layers_follow_without_a_warning() -> None:
    model = ByLayer()
    trace(model, torch.randn(3, 8)).apply(Shrink("encode", remove=[0]))
    assert model.sample(2).shape == (2, 8)
