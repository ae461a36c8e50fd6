"""What a file keeps besides weights and widths, and which networks it is refused for."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError, UnknownNameError
from dynopt_ray.structure import (
    Edit,
    Grow,
    Mask,
    Shrink,
    history_of,
    load,
    mask_of,
    save,
    trace,
)
from dynopt_ray.training import Snapshot

X = torch.randn(4, 6)


class Keeping(nn.Linear):
    """A layer that keeps something outside of tensors, and not as an attribute of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.kept = SimpleNamespace(extra=None)

    @property
    def extra(self) -> Any:
        return self.kept.extra

    def get_extra_state(self) -> Any:
        return self.kept.extra

    def set_extra_state(self, state: Any) -> None:
        self.kept.extra = state


def keeping(extra: Any = None) -> Any:
    model: Any = nn.Sequential(nn.Linear(6, 5), Keeping(5, 2))
    model[1].set_extra_state(extra)
    return model


def mlp(inputs: int = 6, hidden: int = 12, middle: int = 8, outputs: int = 10) -> nn.Sequential:
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, middle), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(middle, outputs))


@pytest.mark.parametrize(
    "extra",
    [
        None,
        2.5,
        {"scale": 2.0, "names": ["a", None], "range": (0, (1.5, True)), "empty": ()},
        [2**70, "text", {"nested": {"deep": -1}}],
    ],
)
def test_extra_state_comes_back(extra: Any, tmp_path: Path) -> None:
    save(tmp_path / "n", keeping(extra))
    load(tmp_path / "n", other := keeping("another"))
    assert other[1].extra == extra


def test_tensors_in_extra_state_come_back(tmp_path: Path) -> None:
    scales = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    save(tmp_path / "n", keeping({"scales": scales, "steps": (torch.tensor(3),)}))
    load(tmp_path / "n", other := keeping())
    assert other[1].extra["scales"].dtype == torch.bfloat16
    assert torch.equal(other[1].extra["scales"], scales)
    assert torch.equal(other[1].extra["steps"][0], torch.tensor(3))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"seen": {1, 2}}, r"module '1'\['seen'\] is a set, which only pickle"),
        ([b"bytes"], r"module '1'\[0\] is a bytes"),
        (np.ones(2), "module '1' is a ndarray"),
        (1j, "module '1' is a complex"),
        ({3: "three"}, "module '1' has the key 3"),
        ({"$tensor": 1}, r"has the key '\$tensor'"),
        (torch.eye(2).to_sparse(), "module '1' is a Tensor"),
    ],
)
def test_extra_state_that_needs_pickle_is_refused(extra: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "n", keeping(extra))
    assert not list(tmp_path.iterdir())


def test_extra_state_that_cannot_be_taken_back_is_refused(tmp_path: Path) -> None:
    class Giving(nn.Linear):
        def get_extra_state(self) -> Any:
            return 1

    with pytest.raises(CheckpointError, match="no set_extra_state"):
        save(tmp_path / "n", Giving(2, 2))
    save(tmp_path / "with", nn.Sequential(Keeping(2, 2)))
    save(tmp_path / "without", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(CheckpointError, match="only in the file does module '0' have extra state"):
        load(tmp_path / "with", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(CheckpointError, match="only in the network does module '0'"):
        load(tmp_path / "without", nn.Sequential(Keeping(2, 2)))


def test_a_failed_load_and_a_snapshot_restore_extra_state(tmp_path: Path) -> None:
    model = keeping({"kept": [1]})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save(tmp_path / "n", keeping({"kept": [2]}))
    with pytest.raises(CheckpointError, match="saved without an optimizer"):
        load(tmp_path / "n", model, optimizer)
    assert model[1].extra == {"kept": [1]}
    snapshot = Snapshot(model)
    model[1].extra["kept"].append(5)
    snapshot.restore()
    assert model[1].extra == {"kept": [1]}


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def with_compiled_layer(model: nn.Sequential) -> nn.Module:
    model[2] = compiled(model[2])
    return model


WRAPPERS: dict[str, Callable[[nn.Sequential], Any]] = {
    "compiled": compiled,
    "a compiled layer": with_compiled_layer,
    "parallel": nn.DataParallel,
    "compiled and parallel": lambda model: nn.DataParallel(compiled(model)),
    "plain": lambda model: model,
}


@pytest.mark.filterwarnings("ignore")  # the compilation warns of torch's own code
@pytest.mark.parametrize("into", WRAPPERS)
@pytest.mark.parametrize("name", WRAPPERS)
def test_files_hold_the_names_of_the_network_as_written(
    name: str, into: str, tmp_path: Path
) -> None:
    plain = mlp()
    graph = trace(plain, X)
    optimizer = torch.optim.Adam(plain.parameters())
    plan: list[Edit] = [Mask("0.weight", keep=torch.rand(12, 6) > 0.5), Shrink("0", remove=[1])]
    graph.apply(plan, optimizer=optimizer)
    plain(X).sum().backward()
    optimizer.step()
    expected = plain(X)
    save(tmp_path / "n", WRAPPERS[name](plain), optimizer)

    target: Any = mlp()
    wrapped = WRAPPERS[into](target)
    again = torch.optim.Adam(wrapped.parameters())
    load(tmp_path / "n", wrapped, again)
    assert torch.equal(target(X), expected)
    assert target[0].out_features == 11
    assert mask_of(target[0].weight) is not None
    assert history_of(target) == history_of(plain)
    assert all("exp_avg" in again.state[p] for p in wrapped.parameters())


def test_sharded_networks_are_not_saved(tmp_path: Path) -> None:
    class FSDPModule:
        """As `fully_shard` makes the class of a network."""

    class Sharded(FSDPModule, nn.Linear):
        pass

    with pytest.raises(CheckpointError, match="module '0' is sharded"):
        save(tmp_path / "n", nn.Sequential(Sharded(2, 2)))


class Decoder(nn.Module):
    def __init__(self, hidden: int = 6, outputs: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, hidden, 3, padding=1)
        self.last = nn.ConvTranspose2d(hidden, outputs, 2, 2)


class TwoHeads(nn.Module):
    """The auxiliary head comes first, as in GoogLeNet."""

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.first, self.auxiliary = nn.Linear(4, 8), nn.Linear(8, outputs)
        self.second, self.head = nn.Linear(8, 8), nn.Linear(8, outputs)


class Words(nn.Module):
    def __init__(self, words: int = 20, width: int = 8) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(words, width), nn.LSTM(width, width)
        self.head = nn.Linear(width, words)


class Tied(nn.Module):
    """The head uses the table's weights."""

    def __init__(self, words: int = 20, width: int = 8) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(words, width), nn.Linear(width, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.table.weight


class Positions(nn.Module):
    def __init__(self, length: int = 16, width: int = 8) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, length, width))
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 3)


def convolutional(channels: int = 3, kernel: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, kernel), nn.ReLU(), nn.Conv2d(4, 2, 1))


OTHER_ENDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], list[Any]]] = {
    "classes": (lambda: mlp(outputs=3), mlp, ["output"]),
    "classes and hidden": (lambda: mlp(outputs=3, middle=3), mlp, ["output"]),
    "features": (lambda: mlp(inputs=5), mlp, ["input"]),
    "features and classes": (lambda: mlp(inputs=5, outputs=3), mlp, ["input", "output"]),
    "image channels": (lambda: convolutional(1), convolutional, ["input"]),
    "transposed": (lambda: Decoder(outputs=2), Decoder, ["output"]),
    "two heads": (lambda: TwoHeads(2), TwoHeads, ["output"]),
    "words": (lambda: Words(30), Words, ["input", "output"]),
    "tied words": (lambda: Tied(30), Tied, ["input", "output"]),
    "positions": (lambda: Positions(9), Positions, ["input"]),
}


@pytest.mark.parametrize("name", OTHER_ENDS)
def test_another_input_or_output_is_loaded_only_when_asked_for(name: str, tmp_path: Path) -> None:
    make, build, ends = OTHER_ENDS[name]
    saved, target = make(), build()
    save(tmp_path / "n", saved)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    for free in [(), *([end] for end in ends if len(ends) > 1)]:
        with pytest.raises(CheckpointError, match="file's network has another task"):
            load(tmp_path / "n", target, free=free)
        assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())
    load(tmp_path / "n", target, free=ends)
    for key, value in target.state_dict().items():
        assert torch.equal(value, saved.state_dict()[key])


HIDDEN: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "perceptron": (lambda: mlp(hidden=7, middle=5), mlp),
    "transposed": (lambda: Decoder(4), Decoder),
    "recurrent": (lambda: Words(width=6), Words),
    "tied": (lambda: Tied(width=6), Tied),
    "positions": (lambda: Positions(width=6), Positions),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_widths_of_other_constructors_are_taken(name: str, tmp_path: Path) -> None:
    make, build = HIDDEN[name]
    save(tmp_path / "n", make())
    load(tmp_path / "n", target := build())
    assert [t.shape for t in target.parameters()] == [t.shape for t in make().parameters()]


def test_sizes_along_which_no_units_lie_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "n", convolutional(kernel=5))
    with pytest.raises(CheckpointError, match="dimension 2 in the file and 3 in this network, and"):
        load(tmp_path / "n", convolutional(), free=("input", "output"))
    with pytest.raises(UnknownNameError, match="no end of a network 'outputs'"):
        load(tmp_path / "n", convolutional(), free="outputs")  # type: ignore[arg-type]


def test_widths_that_plans_changed_are_no_ends(tmp_path: Path) -> None:
    small = mlp(hidden=10, middle=10, outputs=3)
    trace(small, X).apply([Shrink("0", keep=[0, 1, 2]), Shrink("2", keep=[0, 1, 2])])
    save(tmp_path / "n", small)
    with pytest.raises(CheckpointError, match=r"'4\.weight' has size 3 .* size of an output"):
        load(tmp_path / "n", mlp(hidden=10, middle=10))
    load(tmp_path / "n", target := mlp(hidden=10, middle=10, outputs=3))
    trace(target, X).apply(Grow("0", units=9))
    save(tmp_path / "again", target)
    load(tmp_path / "again", small)
    assert small[0].out_features == 12


class BackToFront(nn.Module):
    """Its layers are made in another order than they run, so the maker seems to have no reader."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(width, 2), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x).relu())
        return y


def test_what_plans_resized_is_taken_even_into_a_resized_network(tmp_path: Path) -> None:
    model, target = BackToFront(8), BackToFront(8)
    trace(model, X).apply(Shrink("first", keep=range(5)))
    trace(target, X).apply(Shrink("first", keep=range(3)))
    save(tmp_path / "n", model)
    load(tmp_path / "n", target)
    assert torch.equal(target(X), model(X))
