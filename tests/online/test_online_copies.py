"""Copies and pickles of learners: they continue as the learner itself would."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.online import Guard, OnlineLearner, load, save
from dynopt_ray.schedules import cosine, warmup
from dynopt_ray.structure import Mask, Shrink, mask_of, trace
from dynopt_ray.training import Hypergradient
from tests.online.learners import events, learner, network, state_bytes

COPIES: dict[str, Callable[[OnlineLearner], OnlineLearner]] = {
    "pickled": lambda original: pickle.loads(pickle.dumps(original)),
    "copied": copy.deepcopy,
}
DETECTORS = ["adwin", "kswin", "page_hinkley", "ddm", "hddm_a", "hddm_w"]


def with_masks_and_plans() -> OnlineLearner:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    graph = trace(model, torch.randn(2, 4))
    made = OnlineLearner(model, optimizer, structure=graph, reactions="raise_rate")
    keep = torch.arange(24).reshape(6, 4) % 3 > 0
    graph.apply([Mask("0.weight", keep=keep), Shrink("0", remove=[1])], optimizer=optimizer)
    return made


def with_masks() -> OnlineLearner:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    keep = torch.arange(24).reshape(6, 4) % 3 > 0
    trace(model, torch.randn(2, 4)).apply(Mask("0.weight", keep=keep), optimizer=optimizer)
    return OnlineLearner(model, optimizer)


def with_hypergradient() -> OnlineLearner:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return OnlineLearner(model, optimizer, lr=Hypergradient(optimizer, hyper_lr=1e-3))


LEARNERS: dict[str, Callable[[], OnlineLearner]] = {
    **{name: lambda name=name: learner(detector=name) for name in DETECTORS},  # type: ignore[misc]
    "everything": lambda: learner(
        network(dropout=0.3),
        detector="ddm",
        guard=Guard(window=8),
        reactions=["raise_rate", "replay"],
        lr=warmup(cosine(0.1, num_steps=40), num_steps=5),
    ),
    "plateau": lambda: learner(lr="plateau"),
    "masks": with_masks,
    "masks and plans": with_masks_and_plans,
    "hypergradient": with_hypergradient,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", LEARNERS)
def test_a_copy_continues_alike(name: str, how: str, tmp_path: Path) -> None:
    original = LEARNERS[name]()
    stream = events(80)
    for event in stream[:40]:
        original.learn(*event)
    twin = COPIES[how](original)
    for event in stream[40:]:
        assert original.learn(*event).loss == twin.learn(*event).loss
    assert state_bytes(twin, tmp_path) == state_bytes(original, tmp_path)


@pytest.mark.parametrize("how", COPIES)
def test_plans_of_the_original_are_not_undone_through_a_copy(how: str) -> None:
    original = with_masks_and_plans()
    twin = COPIES[how](original)
    assert original.structure is not None
    assert twin.structure is not None
    assert twin.structure.model is twin.model
    assert mask_of(twin.model.get_parameter("0.weight")) is not None
    assert len(original.structure.receipts) == 1
    assert not twin.structure.receipts
    twin.resize([Shrink("0", remove=[0])]).undo()
    original.structure.receipts[-1].undo()
    assert (original.structure.widths, twin.structure.widths) == ({"0": 6}, {"0": 5})


class Counting(nn.Linear):
    """Counts its passes in extra state."""

    passes = 0

    def get_extra_state(self) -> Any:
        return {"passes": self.passes}

    def set_extra_state(self, state: Any) -> None:
        self.passes = state["passes"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return super().forward(x) / self.passes


def test_snapshots_of_learners_hold_extra_state(tmp_path: Path) -> None:
    original = learner(nn.Sequential(Counting(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    stream = events(20)
    for event in stream[:10]:
        original.learn(*event)
    save(tmp_path / "learner", original)
    restored = learner(nn.Sequential(Counting(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    load(tmp_path / "learner", restored)
    for event in stream[10:]:
        assert original.learn(*event).loss == restored.learn(*event).loss
    plain = learner(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    with pytest.raises(CheckpointError, match="extra state of the module '0'"):
        load(tmp_path / "learner", plain)


@pytest.mark.parametrize("compiled", [False, True])
def test_snapshots_of_compiled_networks_fit_plain_ones_and_back(
    compiled: bool, tmp_path: Path
) -> None:
    def build(*, wrapped: bool) -> OnlineLearner:
        model = network()
        made: Any = torch.compile(model, backend="eager") if wrapped else model
        return OnlineLearner(made, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))

    original, restored = build(wrapped=compiled), build(wrapped=not compiled)
    stream = events(20)
    for event in stream[:10]:
        original.learn(*event)
    save(tmp_path / "learner", original)
    load(tmp_path / "learner", restored)
    for event in stream[10:]:
        assert original.learn(*event).loss == restored.learn(*event).loss
