"""Forward passes that decide by values are followed, or refused with the place."""

import copy
import itertools
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import TraceError
from dynopt_ray.structure import Graph, Grow, Shrink, trace
from tests.structure.deciding import (
    BRANCHES,
    COMPUTES,
    DRAWS,
    GUARDS,
    MIXTURES,
    WIDTH,
    EarlyExit,
    Experts,
    Looking,
)

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
OTHERS = torch.randn(64, 5, generator=torch.Generator().manual_seed(1)) * 3

Look = Callable[[Tensor], Tensor]


def followed(model: nn.Module, inputs: Tensor = X) -> tuple[Graph, str]:
    """Trace a network and return the graph and the text of the warning about branches."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph = trace(model, inputs)
    return graph, " ".join(str(w.message) for w in caught)


@pytest.mark.parametrize("look", GUARDS)
def test_a_guard_is_no_branch_and_leaves_growth_exact(look: Look) -> None:
    model = Looking(look)
    graph = trace(model, X)  # a warning would be an error
    assert graph["first"].exact_growth
    before = model(X)
    graph.apply([Grow("first", units=2)])
    torch.testing.assert_close(model(X), before)


@pytest.mark.parametrize("look", BRANCHES)
def test_a_branch_is_followed_with_its_place(look: Look) -> None:
    model = Looking(look)
    graph, warning = followed(model)
    assert "deciding.py:" in warning
    assert f"(in {look.__name__}" in warning
    assert graph["first"].exact_growth
    before = model(X)
    graph.apply([Grow("first", units=2)])
    torch.testing.assert_close(model(X), before)


@pytest.mark.parametrize("look", COMPUTES)
def test_a_value_that_the_results_depend_on_makes_growth_inexact(look: Look) -> None:
    graph, _ = followed(Looking(look))
    assert not graph["first"].exact_growth


@pytest.mark.parametrize("look", DRAWS)
def test_random_decisions_are_the_same_in_every_pass(look: Look) -> None:
    model = Looking(look)
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    for _ in range(4):
        graph, warning = followed(model)
        assert graph.widths == {"first": WIDTH}
        assert "decides by values" in warning
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("mix", MIXTURES)
def test_experts_without_tokens_follow_those_that_ran(
    mix: Callable[[Experts, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    model = Experts(mix)
    graph, warning = followed(model, X[:1])
    idle = [n for n in range(4) if f"experts.{n}.0" not in graph.widths]
    assert 2 <= len(idle) <= 3
    for number in idle:
        assert graph.fixed[f"experts.{number}.0"] == "not reached by this example"
        assert f"experts.{number}" in warning
    before = model(OTHERS)
    for group in graph.groups:
        graph.apply([Grow(group.name, units=2)])
        torch.testing.assert_close(model(OTHERS), before)
    graph.apply([Shrink(group.name, keep=range(4)) for group in graph.groups])
    assert model(OTHERS).shape == (64, 3)
    assert model.get_parameter(f"experts.{idle[0]}.0.weight").shape == (12, 4)


def test_later_exits_follow_those_that_were_reached() -> None:
    torch.manual_seed(0)
    model = EarlyExit()
    graph, warning = followed(model)
    assert "(in EarlyExit.forward)" in warning
    assert "did not reach blocks" in warning
    graph.apply([Shrink("first", keep=range(5))])
    assert {layer.in_features for layer in model.exits} == {5}
    assert model(OTHERS / 100).shape == (64, 3)


def test_values_at_another_width_are_those_of_the_example() -> None:
    """The size of `one_hot` depends on values, and no operation returns them to Python."""

    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
            self.kinds = nn.Parameter(torch.randn(2, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            total = h.sum(-1)
            kind = nn.functional.one_hot((total > total.median()).long())
            out: Tensor = self.second(h + kind.to(h.dtype) @ self.kinds)
            return out

    model = Kinds()
    graph = trace(model, X)
    assert graph.widths == {"first": WIDTH}
    graph.apply([Shrink("first", keep=range(4))])
    assert model(X).shape == (6, 3)


def test_a_pass_that_decides_otherwise_each_time_is_refused() -> None:
    turn = itertools.count()

    def more_each_time(h: Tensor) -> Tensor:
        for _ in range(next(turn)):
            h = h if h.sum() > 0 else h * 2
        return h

    with pytest.raises(TraceError, match=r"other operations each time.*test_branches\.py:\d+"):
        followed(Looking(more_each_time))


def test_an_error_of_the_network_names_its_place() -> None:
    def fails(h: Tensor) -> Tensor:
        raise ValueError(f"{h.ndim} no such thing")

    with pytest.raises(TraceError, match=r"no such thing \(at .*test_branches\.py:\d+ \(in .*fail"):
        trace(Looking(fails), X)


def test_an_error_without_a_message_at_another_width_is_a_reason() -> None:
    def only_eight(h: Tensor) -> Tensor:
        if h.shape[1] != WIDTH:
            raise ValueError(" \n ")
        return h

    graph = trace(Looking(only_eight), X)
    assert graph.fixed["first"] == "its size is written into the forward pass (ValueError)"


def test_an_argmax_that_chooses_by_position_keeps_its_units() -> None:
    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.codes = nn.Linear(5, WIDTH), nn.Embedding(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.codes(self.first(x).argmax(-1))
            return out

    graph = trace(Codes(), X)
    assert "first" not in graph.widths
    assert graph.fixed["first"] == "its units are told apart by their position"


def test_tracing_twice_gives_the_same_groups() -> None:
    model = Experts(MIXTURES[0])
    one, other = (followed(copy.deepcopy(model))[0] for _ in range(2))
    assert one.widths == other.widths
    assert one.fixed == other.fixed
