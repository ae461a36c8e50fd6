"""Saving and restoring: a restored learner is bit for bit the one that was never saved."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.online import Guard, OnlineLearner, RaiseRate, Replay, Replayed, load, save
from dynopt_ray.online.detectors import adwin
from dynopt_ray.schedules import constant
from tests.online.learners import events, learner, network, state_bytes

CONFIGURATIONS: dict[str, Callable[[], OnlineLearner]] = {
    "plain": lambda: learner(),
    "adam": lambda: learner(optimizer=lambda p: torch.optim.Adam(p, lr=0.01)),
    "everything": lambda: learner(
        network(dropout=0.3),
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.05, amsgrad=True),
        detector="ddm",
        guard=Guard(window=16),
        reactions=["raise_rate", "replay"],
        lr=constant(0.05),
        seed=5,
    ),
    "kswin": lambda: learner(
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
        detector="kswin",
        reactions=RaiseRate(half_life=400),
    ),
    "adwin": lambda: learner(
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
        detector=adwin(delta=0.05),
        reactions=[Replay(window=20)],
    ),
    "rmsprop": lambda: learner(optimizer=torch.optim.RMSprop, guard=Guard(max_halvings=0)),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_restored_is_uninterrupted(name: str, tmp_path: Path) -> None:
    stream = events(600)
    # The classes swap at event 250, so that detectors and reactions have something to do.
    stream = [(x, y if i < 250 else (y + 1) % 3) for i, (x, y) in enumerate(stream)]
    uninterrupted, drifts = CONFIGURATIONS[name](), 0
    for index, event in enumerate(stream):
        drifts += uninterrupted.learn(*event).drift
        if index in (120, 330):
            save(tmp_path / f"at-{index}", uninterrupted)
    assert bool(drifts) == (name in {"everything", "kswin", "adwin"})
    wanted = state_bytes(uninterrupted, tmp_path)
    for index in (120, 330):
        restored = CONFIGURATIONS[name]()
        restored.learn(*stream[7])
        load(tmp_path / f"at-{index}", restored)
        for event in stream[index + 1 :]:
            restored.learn(*event)
        assert state_bytes(restored, tmp_path) == wanted


def test_restored_is_uninterrupted_with_batch_norm(tmp_path: Path) -> None:
    def build() -> OnlineLearner:
        return learner(network(dropout=0.2, batch_norm=True), guard=Guard(window=16))

    x = torch.stack([x for x, _ in events(400)]).reshape(50, 8, 4)
    y = torch.stack([y for _, y in events(400)]).reshape(50, 8)
    uninterrupted = build()
    for index in range(50):
        uninterrupted.learn(x[index], y[index])
        if index == 20:
            state = uninterrupted.state_dict()
    restored = build()
    restored.load_state_dict(state)
    for index in range(21, 50):
        restored.learn(x[index], y[index])
    assert state_bytes(restored, tmp_path) == state_bytes(uninterrupted, tmp_path)


def test_a_state_dict_is_a_copy(tmp_path: Path) -> None:
    subject = CONFIGURATIONS["everything"]()
    stream = events(40)
    for event in stream[:20]:
        subject.learn(*event)
    state = subject.state_dict()
    kept = copy.deepcopy(state)
    restored = CONFIGURATIONS["everything"]()
    restored.load_state_dict(state)
    for event in stream[20:]:
        subject.learn(*event)
        restored.learn(*event)
    again = CONFIGURATIONS["everything"]()
    again.load_state_dict(state)
    reference = CONFIGURATIONS["everything"]()
    reference.load_state_dict(kept)
    assert state_bytes(again, tmp_path) == state_bytes(reference, tmp_path)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda: learner(nn.Linear(4, 3)), "is of another network"),
        (lambda: learner(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))), "of another network"),
        (lambda: learner(optimizer=torch.optim.Adam), "the optimizer is Adam"),
        (lambda: learner(detector="adwin"), "the learner has a drift detector, the state has none"),
        (lambda: learner(reactions="replay"), r"reacts with \['Replay'\], the state is of \[\]"),
    ],
)
def test_a_state_of_another_kind_of_learner_is_refused(
    other: Callable[[], OnlineLearner], reason: str, tmp_path: Path
) -> None:
    subject = other()
    before = state_bytes(subject, tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        subject.load_state_dict(learner().state_dict())
    assert state_bytes(subject, tmp_path) == before


def test_a_detector_with_a_shorter_log_refuses_before_anything_changes(tmp_path: Path) -> None:
    from river.drift import ADWIN

    saved = learner(detector=Replayed(ADWIN, max_log=100))
    for x, y in events(60):
        saved.learn(x, y)
    subject = learner(detector=Replayed(ADWIN, max_log=10))
    before = state_bytes(subject, tmp_path)
    with pytest.raises(CheckpointError, match="max_log"):
        subject.load_state_dict(saved.state_dict())
    assert state_bytes(subject, tmp_path) == before
