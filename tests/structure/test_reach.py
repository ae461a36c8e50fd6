"""What the example did not reach is no unit: longer inputs and later layers still fit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.structure import Graph, Grow, Shrink, trace
from tests.structure.reaching import (
    TABLES,
    Adapters,
    CausalAttention,
    Deep,
    KeyCache,
    PartlyRead,
    Positions,
    Registers,
    Stacked,
    Tokens,
    Unused,
)

SHORT, LONG = 4, 6
_NOT_REACHED = "not reached by this example"


def inputs(length: int) -> Tensor:
    return torch.randn(2, length, 5, generator=torch.Generator().manual_seed(length))


def grown_and_halved(model: nn.Module, graph: Graph) -> None:
    """Grow each group exactly, then halve all; the network must fit longer inputs all the time."""
    before = model(inputs(LONG))
    for group in graph.groups:
        if group.exact_growth:
            graph.apply([Grow(group.name, units=group.step)])
            torch.testing.assert_close(model(inputs(LONG)), before)
            graph.receipts[-1].undo()
    graph.apply([Shrink(group.name, keep=range(group.width // 2)) for group in graph])
    model(inputs(LONG))


@pytest.mark.parametrize("learned", [True, False], ids=["parameter", "buffer"])
@pytest.mark.parametrize("read", TABLES)
def test_positions_beyond_the_example_are_no_units(read: str, learned: bool) -> None:
    shape, how = TABLES[read]
    model = Positions(shape, how, learned=learned)
    graph = trace(model, inputs(SHORT))
    assert graph.widths == {"first": 8}
    grown_and_halved(model, graph)
    assert 32 in model.table.shape


@pytest.mark.parametrize(
    ("make", "names", "widths"),
    [
        (CausalAttention, ["mask", "biases", "rows", "columns"], {"first": 8, "qkv": 2}),
        (KeyCache, ["cache"], {"key": 8}),
        (Stacked, ["layers", "scales"], {"first": 8}),
        (Unused, ["side"], {"first": 8}),
        (
            Deep,
            ["blocks.4.0", "blocks.5.0", "blocks.5.2.weight[1]"],
            {"first": 8, **{f"blocks.{i}.0": 12 for i in range(SHORT)}},
        ),
    ],
)
def test_what_the_example_did_not_reach_is_fixed(
    make: Callable[[], nn.Module], names: list[str], widths: dict[str, int]
) -> None:
    model = make()
    graph = trace(model, inputs(SHORT))
    assert graph.widths == widths
    assert [graph.fixed[name] for name in names] == [_NOT_REACHED] * len(names)
    grown_and_halved(model, graph)


def test_a_matrix_over_tokens_keeps_its_size() -> None:
    model = Tokens()
    graph = trace(model, inputs(SHORT))
    assert graph.widths == {"first": 8}
    grown_and_halved(model, graph)
    assert model.mix.shape == (16, 16)


def test_units_that_nothing_reads_are_not_offered() -> None:
    model = PartlyRead()
    graph = trace(model, inputs(SHORT))
    assert graph.widths == {"first": 8}
    assert graph.fixed["first"] == _NOT_REACHED
    before = model(inputs(SHORT))
    graph.apply([Grow("first", units=2)])
    torch.testing.assert_close(model(inputs(SHORT)), before)
    assert model.first.out_features == 14


def test_later_layers_follow_those_of_the_same_list() -> None:
    model = Deep()
    graph = trace(model, inputs(SHORT))
    graph.apply([Shrink("first", keep=range(5)), Grow("blocks.0.0", units=3)])
    assert model.get_parameter("blocks.5.0.weight").shape == (12, 5)
    assert model.get_submodule("blocks.5.0").in_features == 5
    assert model.get_parameter("blocks.0.0.weight").shape == (15, 5)
    assert graph.cost().flops == trace(model, inputs(SHORT)).cost().flops


def test_widths_that_later_parameters_of_a_list_read_are_fixed() -> None:
    model = Adapters()
    graph = trace(model, inputs(SHORT))
    assert not graph.groups
    reason = f"down.{SHORT}, which this example did not reach, may read it"
    assert graph.fixed["first"] == reason
    assert graph.fixed[f"down.{SHORT}"] == _NOT_REACHED
    assert not trace(model, inputs(8)).fixed.keys() & {"first", "down.0"}


def test_learned_tokens_that_attention_reads_are_units() -> None:
    model = Registers()
    graph = trace(model, inputs(SHORT))
    assert graph.widths["registers"] == 4
    graph.apply([Shrink("registers", remove=[1])])
    assert model(inputs(LONG)).shape == (2, LONG, 3)


def test_a_network_that_ends_in_a_mean_has_units() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.first(x).mean(-1)
            return out

    graph = trace(Mean(), inputs(SHORT))
    assert graph.widths == {"first": 8}
    assert not graph["first"].exact_growth
