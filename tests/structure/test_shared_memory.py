"""Different tensors of one memory: it stays shared, or the edit is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError, EditError
from dynopt_ray.structure import Grow, Mask, Shrink, load, mask_of, save, trace

X = torch.randn(3, 6)


class Twins(nn.Module):
    """Two layers whose weights are one memory, unless `shared` is false."""

    def __init__(self, *, shared: bool = True) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 8), nn.Linear(6, 8)
        self.wide, self.narrow, self.last = nn.Linear(8, 7), nn.Linear(7, 8), nn.Linear(8, 2)
        if shared:
            self.other.weight.data = self.one.weight.data

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.narrow(self.wide(self.one(x)).relu()) + self.other(x))
        return y

    @property
    def are_shared(self) -> bool:
        return self.one.weight.data_ptr() == self.other.weight.data_ptr()


def test_widths_of_shared_memory_are_fixed_with_the_reason() -> None:
    graph = trace(model := Twins(), X)
    assert graph.widths == {"wide": 7}
    with pytest.raises(EditError, match=r"'one' cannot be resized: it shares memory with 'other\."):
        graph.apply(Shrink("one", remove=[0]))
    graph.apply(Shrink("wide", remove=[0]))
    assert model.are_shared
    assert "one" in trace(Twins(shared=False), X).widths


def test_a_part_of_another_tensor_shares_its_memory() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model.register_buffer("first_rows", model.get_parameter("0.weight").data[:3])
    assert "shares memory" in trace(model, X).fixed["0"]
    # Neighbours in one storage are apart: so are the flat weights of recurrent layers on a GPU.
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(flat, model.parameters())
    assert trace(model, X).widths == {"0": 8}


def test_masks_and_undo_write_into_shared_memory() -> None:
    graph = trace(model := Twins(), X)
    before = model.one.weight.detach().clone()
    keep = torch.rand(8, 6) > 0.5
    receipt = graph.apply(Mask("one.weight", keep=keep))
    assert model.are_shared
    assert torch.equal(model.other.weight, before * keep)
    receipt.undo()
    assert model.are_shared
    assert mask_of(model.one.weight) is None
    assert torch.equal(model.other.weight, before)


def test_loading_keeps_memory_shared_or_refuses(tmp_path: Path) -> None:
    save(tmp_path / "shared", model := Twins())
    save(tmp_path / "apart", Twins(shared=False))
    load(tmp_path / "shared", target := Twins())
    assert target.are_shared
    assert torch.equal(target(X), model(X))
    before = target.one.weight.detach().clone()
    with pytest.raises(CheckpointError, match="but their values in the file differ"):
        load(tmp_path / "apart", target)
    assert target.are_shared
    assert torch.equal(target.other.weight, before)
    load(tmp_path / "shared", plain := Twins(shared=False))
    assert torch.equal(plain(X), model(X))


def test_a_file_of_another_width_does_not_part_shared_memory(tmp_path: Path) -> None:
    class Narrow(nn.Module):
        def __init__(self, width: int, *, shared: bool) -> None:
            super().__init__()
            self.one, self.other, self.last = (nn.Linear(6, width) for _ in range(3))
            self.last = nn.Linear(width, 2)
            if shared:
                self.other.weight.data = self.one.weight.data

    save(tmp_path / "n", Narrow(5, shared=False))
    with pytest.raises(CheckpointError, match=r"shares memory with .* so it cannot be resized"):
        load(tmp_path / "n", Narrow(8, shared=True))


def test_memory_of_several_processes_stays_theirs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).share_memory()
    receipt = trace(model, X).apply(Grow("0", units=2))
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.untyped_storage().is_shared() for tensor in tensors)
    save(tmp_path / "n", model)
    receipt.undo()
    assert all(tensor.untyped_storage().is_shared() for tensor in tensors)
    load(tmp_path / "n", model)
    assert all(tensor.untyped_storage().is_shared() for tensor in tensors)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    trace(plain, X).apply(Grow("0", units=2))
    assert not any(tensor.untyped_storage().is_shared() for tensor in plain.parameters())
