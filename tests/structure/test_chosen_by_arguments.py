"""Modules that an argument chooses: other arguments still find the sizes that they need."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.structure import Grow, Shrink, trace

X = torch.randn(3, 4)


class Tasks(nn.Module):
    """A head for each task, chosen by its name."""

    def __init__(self, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.trunk, self.heads = nn.Linear(4, 8), nn.ModuleDict(heads)

    def forward(self, x: Tensor, task: str) -> Tensor:
        out: Tensor = self.heads[task](self.trunk(x).relu())
        return out


class Exits(nn.Module):
    """A chain of layers with an exit after each, as deep as an argument says."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.exits = nn.ModuleList(nn.Linear(8, 2 + i) for i in range(3))

    def forward(self, x: Tensor, depth: int) -> Tensor:
        x = self.first(x)
        for layer in self.layers[:depth]:
            x = layer(x).relu()
        out: Tensor = self.exits[depth - 1](x)
        return out


class Conditional(nn.Module):
    """Adds an embedding if there is one, and a learned vector in another method."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.condition, self.unused = nn.Embedding(5, 8), nn.Linear(8, 8)
        self.shift = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor, which: Tensor | None = None) -> Tensor:
        h = self.first(x)
        out: Tensor = self.second((h if which is None else h + self.condition(which)).relu())
        return out

    def shifted(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x) + self.shift)
        return out


class Named(nn.Module):
    """Finds its heads by names that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head_a, self.head_b = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor, task: str) -> Tensor:
        out: Tensor = getattr(self, f"head_{task}")(self.trunk(x))
        return out


def test_heads_of_other_tasks_follow() -> None:
    model = Tasks({"age": nn.Linear(8, 1), "sex": nn.Linear(8, 2)})
    graph = trace(model, (X, "sex"))
    assert graph.widths == {"trunk": 8}
    before = model(X, "age")
    graph.apply(Grow("trunk", units=3))
    torch.testing.assert_close(model(X, "age"), before)
    graph.apply(Shrink("trunk", keep=[1, 5]))
    assert model.heads["age"].in_features == 2
    assert model(X, "age").shape == (3, 1)


def test_widths_stay_for_a_head_that_cannot_run_like_the_others() -> None:
    heads = {"one": nn.Linear(8, 1), "two": nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 2))}
    graph = trace(Tasks(heads), (X, "one"))
    assert graph.widths == {}
    assert graph.fixed["trunk"] == "heads.two.0, which this example did not reach, may read it"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_chain_follows_beyond_the_depth_of_the_example(depth: int) -> None:
    model = Exits()
    graph = trace(model, (X, depth))
    assert [*graph.widths] == ["first"]
    before = [model(X, d) for d in (1, 2, 3)]
    graph.apply(Grow("first", units=2))
    torch.testing.assert_close([model(X, d) for d in (1, 2, 3)], before)


@pytest.mark.parametrize(
    ("make", "inputs", "names"),
    [(Conditional, X, {"condition", "shift"}), (Named, (X, "a"), {"head_b"})],
)
def test_a_warning_names_what_other_arguments_or_methods_reach(
    make: Callable[[], nn.Module], inputs: Tensor, names: set[str]
) -> None:
    with pytest.warns(UserWarning, match="did not reach") as caught:
        trace(make(), inputs)
    assert {str(warning.message).split("'")[1] for warning in caught} == names
    assert all(warning.filename == __file__ for warning in caught)


def test_no_warning_if_no_width_could_be_read() -> None:
    trace(Conditional(), X, fixed="first")
