"""Files that are damaged or made to harm are refused with a reason, and change nothing."""

import copy
import json
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.storage import read_state, write_state
from dynopt_ray.structure import Grow, Mask, Shrink, history_of, load, mask_of, save, trace
from tests.structure.editing import assert_same, step
from tests.structure.zoo import trained


class Target:
    """A network and optimizer to load into, and what they are."""

    def __init__(self) -> None:
        self.model, self.inputs = trained("mlp", seed=1)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        step(self.model, self.inputs, self.optimizer)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {"history": history_of(self.model)}
        for name, parameter in self.model.named_parameters():
            found[name] = parameter.detach().clone()
            found[f"mask {name}"] = mask_of(parameter)
            found.update({f"{k} {name}": v for k, v in self.optimizer.state[parameter].items()})
        for name, module in self.model.named_modules():
            numbers = {k: v for k, v in vars(module).items() if isinstance(v, int | str | tuple)}
            found[f"attributes {name}"] = numbers
        found["options"] = copy.deepcopy(
            [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        )
        found["params"] = [[id(p) for p in g["params"]] for g in self.optimizer.param_groups]
        return found


def saved(path: Path) -> Path:
    path.write_bytes(saved_bytes())
    return path


@cache
def saved_bytes() -> bytes:
    model, inputs = trained("mlp")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    graph = trace(model, inputs)
    graph.apply([Grow("0", units=2), Shrink("2", remove=[1])], optimizer=optimizer)
    graph.apply([Mask("2.weight", keep=torch.rand(8, 14) > 0.5)], optimizer=optimizer)
    step(model, inputs, optimizer)
    with TemporaryDirectory() as directory:
        save(Path(directory) / "network", model, optimizer, metadata={"epoch": 3})
        return (Path(directory) / "network").read_bytes()


def refused_or_alike(path: Path, target: Target, before: dict[str, Any], whole: Path) -> bool:
    """Whether a file was refused; if not, it must have meant the same as the whole one."""
    try:
        load(path, target.model, target.optimizer)
    except CheckpointError:
        assert_same(target.state(), before)
        return True
    twin = Target()
    load(whole, twin.model, twin.optimizer)
    expected, found = twin.state(), target.state()
    expected["params"] = found["params"]
    masks = {name for name in found if name.startswith("mask") and found[name] is not None}
    for name in masks:
        assert torch.equal(found.pop(name), expected.pop(name))
    assert_same(found, expected)
    return False


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_flipped_bytes_are_noticed(data: st.DataObject, tmp_path_factory: Any) -> None:
    directory = tmp_path_factory.mktemp("flipped")
    whole, target = saved(directory / "whole"), Target()
    content, path = bytearray(whole.read_bytes()), directory / "damaged"
    places = st.integers(0, len(content) - 1) | st.integers(0, 300)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    refused_or_alike(path, target, target.state(), whole)


def test_files_cut_anywhere_are_refused(tmp_path: Path) -> None:
    whole, target = saved(tmp_path / "whole"), Target()
    content, before, path = whole.read_bytes(), target.state(), tmp_path / "cut"
    end = len(content)
    for length in [*range(64), *range(64, end - 64, 61), *range(end - 64, end)]:
        path.write_bytes(content[:length])
        assert refused_or_alike(path, target, before, whole)
    path.write_bytes(content + b"\0")
    assert refused_or_alike(path, target, before, whole)


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[" * 100_000,
        '{"a":' * 100_000,
        {"a": _entry("F32", [2], 0, 8), "b": _entry("F32", [2], 4, 12)},  # overlapping
        {"a": _entry("F32", [2], -8, 0)},
        {"a": _entry("F32", [2], 8, 0)},
        {"a": _entry("F32", [2**40, 2**40], 0, 8)},
        {"a": _entry("F32", [10**12], 0, 4 * 10**12)},
        {"a": _entry("F32", [-2], 0, 8)},
        {"a": _entry("F64", [2], 0, 8)},
        {"a": _entry("PICKLE", [2], 0, 8)},
        {"__metadata__": {"dynopt_ray": "[" * 100_000}},
        {"__metadata__": {"dynopt_ray": "[]"}},
        {"__metadata__": {"dynopt_ray": '{"kind": 0, "version": 1, "sha256": 0, "state": 0}'}},
        {"__metadata__": {"dynopt_ray": '{"kind": "network"}'}},
        {"__metadata__": {"dynopt_ray": 3}},
        {"__metadata__": {"other": "x"}},
    ],
)
def test_impossible_heads_are_refused(header: Any, tmp_path: Path) -> None:
    target, path = Target(), tmp_path / "hostile"
    before = target.state()
    head = (header if isinstance(header, str) else json.dumps(header)).encode()
    data = bytes(0 if "__metadata__" in header else 8)
    for length in {len(head), 2**63, 2**31, 0}:
        path.write_bytes(struct.pack("<Q", length) + head + data)
        with pytest.raises(CheckpointError, match="hostile"):
            load(path, target.model, target.optimizer)
    assert_same(target.state(), before)


def test_pickles_directories_and_plain_safetensors_are_refused(tmp_path: Path) -> None:
    target = Target()
    before = target.state()
    torch.save(target.model.state_dict(), tmp_path / "pickle")
    safetensors.torch.save_file(target.model.state_dict(), tmp_path / "plain")
    write_state(tmp_path / "learner", {}, kind="learner")
    for name, reason in {
        "pickle": "truncated, or not the file of a network",
        "plain": "not one that dynopt_ray wrote",
        "learner": "holds a learner, but a network is needed",
        "missing": "No such file",
        ".": "cannot read|truncated, or not the file of a network",
    }.items():
        with pytest.raises(CheckpointError, match=reason):
            load(tmp_path / name, target.model, target.optimizer)
    assert_same(target.state(), before)


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*place, key)
            yield from _places(entry, (*place, key))


_WRONG: list[Any] = [None, -1, 10**30, float("nan"), "x", [], {}, ["x"], {"x": 1}, True]
_WRONG += [torch.ones(2, 2), torch.ones(0), torch.ones(3, dtype=torch.int64), torch.tensor(True)]


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_wrong_content_with_a_right_checksum(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("wrong") / "network"
    state, target = read_state(saved(path), kind="network"), Target()
    place = data.draw(st.sampled_from(list(_places(state))))
    owner = state
    for key in place[:-1]:
        owner = owner[key]
    if data.draw(st.booleans()):
        owner[place[-1]] = data.draw(st.sampled_from(_WRONG))
    else:
        del owner[place[-1]]
    write_state(path, state, kind="network")
    before = target.state()
    try:
        load(path, target.model, target.optimizer)
    except CheckpointError:
        assert_same(target.state(), before)
    else:
        assert target.state()["params"] == before["params"]
        assert all(isinstance(p, nn.Parameter) for p in target.model.parameters())


def test_other_kinds_of_numbers_are_refused_but_nan_comes_back(tmp_path: Path) -> None:
    path = saved(tmp_path / "network")
    state, target = read_state(path, kind="network"), Target()
    state["tensors"]["0.bias"] = state["tensors"]["0.bias"].long()
    write_state(tmp_path / "long", state, kind="network")
    with pytest.raises(CheckpointError, match=r"'0\.bias' has dtype torch\.int64 in the file"):
        load(tmp_path / "long", target.model)
    # A network that has diverged is saved and loaded as it is.
    state["tensors"]["0.bias"] = torch.full((14,), torch.nan)
    write_state(tmp_path / "nan", state, kind="network")
    load(tmp_path / "nan", target.model)
    assert bool(target.model.get_parameter("0.bias").isnan().all())
