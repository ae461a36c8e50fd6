"""Saving and loading: what was saved comes back, what was damaged does not."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import CheckpointError
from dynopt_ray.structure import (
    Grow,
    Mask,
    Shrink,
    history_of,
    load,
    mask_of,
    plan_from_json,
    plan_to_json,
    save,
    trace,
)
from tests.structure.zoo import NETWORKS, Attention, trained


def resized(name: str) -> tuple[nn.Module, Tensor, Optimizer]:
    """A network at other widths, with a mask and some optimizer state."""
    model, inputs = trained(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    graph = trace(model, inputs)
    graph.apply([Grow(g.name, units=3) for g in graph], optimizer=optimizer)
    graph.apply([Shrink(g.name, remove=[0]) for g in graph], optimizer=optimizer)
    weight = max(model.named_parameters(), key=lambda item: item[1].numel())[0]
    keep = torch.rand(model.get_parameter(weight).shape) > 0.3
    graph.apply([Mask(weight, keep=keep)], optimizer=optimizer)
    step(model, inputs, optimizer)
    return model, inputs, optimizer


def step(model: nn.Module, inputs: Tensor, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_loads_into_the_original_and_trains_on_alike(name: str, tmp_path: Path) -> None:
    model, inputs, optimizer = resized(name)
    path = tmp_path / "network.safetensors"
    save(path, model, optimizer, metadata={"epoch": 3})

    other = NETWORKS[name].build().eval()
    parameters = list(other.parameters())
    twin = torch.optim.AdamW(parameters)
    assert load(path, other, twin) == {"epoch": 3}
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))
    assert torch.equal(other(inputs), model(inputs))
    for one, two in [(model, optimizer), (other, twin)]:
        step(one, inputs, two)
        step(one, inputs, two)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert twin.param_groups[0]["lr"] == 0.02
    assert trace(other, inputs).widths == trace(model, inputs).widths
    assert_masked_alike(model, other)
    assert history_of(other) == history_of(model)
    assert [len(plan) for plan in history_of(other)] == [len(NETWORKS[name].widths)] * 2 + [1]


def test_masks_and_attributes_come_back(tmp_path: Path) -> None:
    model, _, _ = resized("attention")
    save(tmp_path / "n", model)
    other = Attention()
    load(tmp_path / "n", other)
    assert other.num_heads == 5
    assert_masked_alike(model, other)


def assert_masked_alike(model: nn.Module, other: nn.Module) -> None:
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        mine, theirs = mask_of(one), mask_of(two)
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", NETWORKS)
def test_loads_into_another_precision(name: str, tmp_path: Path) -> None:
    model, inputs, optimizer = resized(name)
    save(tmp_path / "n", model, optimizer)
    other = NETWORKS[name].build().eval().double()
    twin = torch.optim.AdamW(other.parameters())
    load(tmp_path / "n", other, twin)
    wide = inputs.double() if inputs.is_floating_point() else inputs
    assert other(wide).dtype == torch.float64
    torch.testing.assert_close(other(wide).float(), model(inputs), rtol=1e-4, atol=1e-5)
    step(other, wide, twin)
    assert {state["exp_avg"].dtype for state in twin.state.values()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_step_counts_stay_as_they_are_in_any_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """In bfloat16 there is no 1,001: the next numbers are 1,000 and 1,004."""
    model, inputs = trained("mlp")
    model, inputs = model.to(dtype), inputs.to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-4)
    step(model, inputs, optimizer)
    for state in optimizer.state.values():
        state["step"] += 1000
    save(tmp_path / "n", model, optimizer)
    other = NETWORKS["mlp"].build().eval().to(dtype)
    twin = torch.optim.Adam(other.parameters())
    load(tmp_path / "n", other, twin)
    for parameter, wanted in zip(other.parameters(), model.parameters(), strict=True):
        found = twin.state[parameter]
        assert found["step"].item() == 1001
        assert found["step"].dtype == torch.float32
        assert found["exp_avg"].dtype == dtype
        assert torch.equal(found["exp_avg"], optimizer.state[wanted]["exp_avg"])
    for one, two in ((model, optimizer), (other, twin)):
        step(one, inputs, two)
    for found, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["vgg", "attention", "recurrent"])
def test_loads_into_a_network_made_without_memory(name: str, tmp_path: Path) -> None:
    model, inputs, _ = resized(name)
    save(tmp_path / "n", model)
    with torch.device("meta"):
        other = NETWORKS[name].build().eval()
    load(tmp_path / "n", other)
    assert {p.device.type for p in other.parameters()} == {"meta"}
    other.to_empty(device="cpu")
    load(tmp_path / "n", other)
    assert torch.equal(other(inputs), model(inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_history_makes_the_same_network_again(name: str, tmp_path: Path) -> None:
    model, inputs, _ = resized(name)
    graph = trace(model, inputs)
    weight = max(model.named_parameters(), key=lambda item: item[1].numel())[0]
    for _ in range(3):  # of these masks the last counts
        keep = torch.rand(model.get_parameter(weight).shape) > 0.4
        graph.apply([Mask(weight, keep=keep)])
        graph.apply([Grow(graph.groups[0].name, units=1)])
    undone = graph.apply([Grow(graph.groups[0].name, units=4)])
    undone.undo()
    graph.commit()
    save(tmp_path / "n", model)
    loaded = NETWORKS[name].build()
    load(tmp_path / "n", loaded)
    history = history_of(loaded)
    assert history == history_of(model)
    assert sum(isinstance(edit, Mask) for plan in history for edit in plan) == 1
    other = NETWORKS[name].build()
    again = trace(other, inputs)
    for plan in history:
        again.apply(plan_from_json(plan_to_json(plan)))
    assert again.widths == graph.widths
    assert_masked_alike(model, other)
    assert history_of(other) == history


def test_masks_that_are_taken_off_leave_history() -> None:
    model, inputs = trained("mlp")
    graph = trace(model, inputs)
    keep = torch.rand(9, 12) > 0.5
    graph.apply([Mask("2.weight", keep=keep), Mask("0.bias", keep=torch.arange(12) > 3)])
    keep[:] = True
    assert not bool(history_of(model)[0][0].keep.all())  # type: ignore[union-attr]
    receipt = graph.apply([Mask("2.weight", keep=keep)])
    assert [edit.parameter for (edit,) in history_of(model)] == ["0.bias"]  # type: ignore[union-attr]
    receipt.undo()
    graph.receipts[-1].undo()
    assert history_of(model) == ()


def test_several_optimizers_and_rates_that_are_tensors_come_back(tmp_path: Path) -> None:
    def trainers(model: nn.Module, rate: Any) -> list[Optimizer]:
        matrices = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim == 1]
        return [torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.Adam(rest, lr=rate)]

    model, inputs = trained("mlp")
    optimizers = trainers(model, torch.tensor(0.02))

    def train(model: nn.Module, optimizers: list[Optimizer]) -> None:
        model.zero_grad()
        model(inputs).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()

    train(model, optimizers)
    trace(model, inputs).apply([Grow("0", units=2)], optimizer=optimizers)
    save(tmp_path / "n", model, optimizers)
    other = NETWORKS["mlp"].build().eval()
    for rate in (torch.tensor(0.5), 0.5):
        twins = trainers(other, rate)
        load(tmp_path / "n", other, twins)
        assert isinstance(twins[1].param_groups[0]["lr"], type(rate))
        assert float(twins[1].param_groups[0]["lr"]) == pytest.approx(0.02)
    with pytest.raises(CheckpointError, match="saved with 2 optimizers; load it with as many"):
        load(tmp_path / "n", other, twins[0])
    train(model, optimizers)
    train(other, twins)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_parts_of_the_file_are_plain_safetensors(tmp_path: Path) -> None:
    model, _, _ = resized("mlp")
    save(tmp_path / "n", model)
    length = int.from_bytes((tmp_path / "n").read_bytes()[:8], "little")
    head = json.loads((tmp_path / "n").read_bytes()[8 : 8 + length])
    assert head["state.tensors.0.weight"]["shape"] == list(model.get_parameter("0.weight").shape)


@pytest.mark.parametrize("place", [0, 8, 200, -1, -4000])
def test_altered_file_is_refused_and_nothing_changes(place: int, tmp_path: Path) -> None:
    model, inputs, _ = resized("vgg")
    path = tmp_path / "n"
    save(path, model)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    refuses(path, inputs)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_file_is_refused_and_nothing_changes(share: float, tmp_path: Path) -> None:
    model, inputs, _ = resized("vgg")
    path = tmp_path / "n"
    save(path, model)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refuses(path, inputs)


def refuses(path: Path, inputs: Tensor) -> None:
    other = NETWORKS["vgg"].build().eval()
    before = other(inputs)
    with pytest.raises(
        CheckpointError, match=r"vgg|truncated|altered|not one that dynopt_ray wrote"
    ):
        load(path, other)
    assert torch.equal(other(inputs), before)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    mlp, _, optimizer = resized("mlp")
    save(tmp_path / "mlp", mlp, optimizer)
    with pytest.raises(CheckpointError, match="does not fit this Sequential: only the"):
        load(tmp_path / "mlp", NETWORKS["vgg"].build())
    torch.save(mlp.state_dict(), tmp_path / "pickle")
    with pytest.raises(CheckpointError, match="truncated, or not the file of a network"):
        load(tmp_path / "pickle", NETWORKS["mlp"].build())
    with pytest.raises(CheckpointError, match="No such file"):
        load(tmp_path / "missing", NETWORKS["mlp"].build())


def test_optimizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, _, optimizer = resized("mlp")
    save(tmp_path / "with", model, optimizer)
    save(tmp_path / "without", model)
    other = NETWORKS["mlp"].build()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    parameters = list(other.parameters())
    cases: list[tuple[str, Optimizer, str]] = [
        ("without", torch.optim.AdamW(parameters), "saved without an optimizer"),
        ("with", torch.optim.SGD(parameters), "has the state of AdamW"),
        ("with", torch.optim.AdamW([{"params": [p]} for p in parameters]), "1 parameter groups"),
        ("with", torch.optim.AdamW(parameters[1:]), "other parameters"),
    ]
    for file, wrong, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / file, other, wrong)
        assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


def test_learning_rate_schedules_resume(tmp_path: Path) -> None:
    model, _, optimizer = resized("mlp")
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    save(tmp_path / "n", model, optimizer)
    other = NETWORKS["mlp"].build()
    again = torch.optim.AdamW(other.parameters(), lr=9.0)
    load(tmp_path / "n", other, again)
    resumed = torch.optim.lr_scheduler.StepLR(again, 2, gamma=0.5, last_epoch=3)
    optimizer.step()
    schedule.step()
    assert resumed.get_last_lr() == schedule.get_last_lr()


def test_disk_that_runs_full_keeps_the_previous_file(tmp_path: Path) -> None:
    model, inputs, _ = resized("mlp")
    path = tmp_path / "n"
    save(path, model)
    larger = nn.Linear(400, 400)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="the previous file is still valid"):
            save(path, larger)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    other = NETWORKS["mlp"].build()
    load(path, other)
    assert torch.equal(other(inputs), model(inputs))
    assert [file.name for file in tmp_path.iterdir()] == ["n"]
