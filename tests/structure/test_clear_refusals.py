"""Arguments and networks that cannot be used are refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError, DynoptError, EditError, TraceError
from dynopt_ray.structure import (
    Grow,
    Insert,
    Remove,
    Shrink,
    history_of,
    measure,
    save,
    trace,
)

X = torch.randn(3, 4)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


GROW: Any = Grow
REMOVE: Any = Remove
TRACE: Any = trace
HISTORY_OF: Any = history_of
"""Without types, because they would not allow what is tried here."""

MISUSES: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "group by number": (lambda g, _: g.apply(GROW(0, units=1)), "a string such as '0'"),
    "index": (lambda g, _: g[0], "a string such as '0'"),
    "no plan": (lambda g, _: g.apply(None), "None is not a plan"),
    "class": (lambda g, _: g.apply(Grow), "is not a plan"),
    "list of widths": (lambda g, _: g.cost([3]), "give a dict"),
    "seed": (lambda g, _: g.apply(GROW("0", 1), seed="a"), "seed is 'a'"),
    "half a seed": (lambda g, _: g.apply(GROW("0", 1), seed=1.5), "seed is 1.5"),
    "no optimizers": (lambda g, _: g.apply(GROW("0", 1), optimizer=[]), "an empty list"),
    "exact": (lambda g, _: g.apply(GROW("0", 1, exact="no")), "exact is 'no'"),
    "exact removal": (lambda g, _: g.apply(REMOVE("0", exact=1)), "exact is 1"),
    "fixed module": (lambda _, m: TRACE(m, X, fixed=[m[0]]), "give the names"),
    "fixed none": (lambda _, m: TRACE(m, X, fixed=None), "give the names"),
    "history": (lambda *_: HISTORY_OF("x"), "not a network"),
    "activation": (lambda g, _: g.apply(REMOVE("1")), "has no parameters"),
    "container": (
        lambda _, m: TRACE(nn.Sequential(m), X, fixed="0"),
        "'0' is a container; name what is inside: '0.0', '0.2'",
    ),
    "script": (lambda _, m: TRACE(torch.jit.script(m), X), "TorchScript"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_refused_with_what_to_write(misuse: str) -> None:
    model = network()
    use, message = MISUSES[misuse]
    graph = trace(model, X)
    with pytest.raises(DynoptError) as caught:
        use(graph, model)
    assert message in str(caught.value)
    assert graph.widths == {"0": 8}


def test_networks_without_values_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no values"):
        save(tmp_path / "model", network().to("meta"))


def test_networks_nested_too_deeply_name_the_limit() -> None:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(400):
        model = nn.Sequential(model)
    with pytest.raises(TraceError, match="setrecursionlimit"):
        trace(model, X)


class Paired(nn.Module):
    """Runs blocks together with norms, or by their number."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Linear(4, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "zip":
            for block, norm in zip(self.blocks, self.norms, strict=False):
                x = norm(block(x))
        else:
            for number, block in enumerate(self.blocks):
                x = self.norms[number](block(x))
        out: Tensor = self.last(x)
        return out


@pytest.mark.parametrize(
    ("how", "message"), [("zip", "not run all blocks"), ("by number", "Index")]
)
def test_blocks_that_have_partners_are_not_inserted(how: str, message: str) -> None:
    graph = trace(Paired(how), X)
    with pytest.raises(EditError, match=message) as caught:
        graph.apply(Insert("blocks.1"))
    assert "Pass the inputs" not in str(caught.value)


def test_a_block_under_two_names_is_called_shared() -> None:
    block = nn.Linear(4, 4)
    model = nn.Sequential(block, block, nn.Linear(4, 2))
    with pytest.raises(EditError, match="'1' is the same module as '0'"):
        trace(model, X).apply(Remove("1"))


class Mapped(nn.Module):
    """Applies its layers within a transform of torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        def energy(row: Tensor) -> Tensor:
            out: Tensor = self.second(self.first(row).tanh()).squeeze(-1)
            return out

        out: Tensor = torch.func.vmap(torch.func.grad(energy))(x)
        return out


def test_compensation_within_a_transform_is_refused() -> None:
    graph = trace(Mapped(), X)
    with pytest.raises(EditError, match="compensate=None"):
        graph.apply(Shrink("first", remove=[0]), compensate=X)


def test_edits_in_inference_mode_leave_weights_that_can_be_trained() -> None:
    model = network()
    graph = trace(model, X)
    with torch.inference_mode():
        receipt = graph.apply([Grow("0", units=1), Shrink("0", remove=[0, 1])])
    assert not any(p.is_inference() for p in model.parameters())
    model(X).sum().backward()
    with torch.inference_mode():
        receipt.undo()
    model(X).sum().backward()


def test_orthogonal_weights_keep_their_sizes() -> None:
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))
    graph = trace(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2)), X)
    assert graph.widths == {}
    assert "0" in graph.fixed


class Offsets(nn.Module):
    """Adds a parameter of whole numbers to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 8), nn.Linear(8, 1)
        self.offsets = nn.Parameter(torch.tensor([0, 3, 6]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.table(x + self.offsets).sum(1))
        return out


def test_parameters_of_whole_numbers_count() -> None:
    model, x = Offsets(), torch.randint(0, 3, (4, 3))
    assert trace(model, x).cost().params == measure(model, x).params == 84
