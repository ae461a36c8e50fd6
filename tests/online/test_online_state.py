"""Saving and restoring: a restored learner is bit for bit the one that was never saved."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.online import Guard, OnlineLearner, RaiseRate, Replay, Replayed, load, save
from dynopt_ray.online.drift.detectors import adwin
from dynopt_ray.schedules import constant
from dynopt_ray.structure import Grow, Mask, trace
from dynopt_ray.structure.preserve.masks import masked_parameters
from tests.online.learners import events, learner, network, state_bytes


class Fixed:
    """A rate controller that controls nothing."""

    def observe(self, loss: float) -> None:
        pass

    def detach(self) -> None:
        pass

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        pass


class Other(Fixed):
    """Another one."""


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
    stream = events(400)
    # The classes swap at event 170, so that detectors and reactions have something to do.
    stream = [(x, y if i < 170 else (y + 1) % 3) for i, (x, y) in enumerate(stream)]
    uninterrupted, drifts = CONFIGURATIONS[name](), 0
    for index, event in enumerate(stream):
        drifts += uninterrupted.learn(*event).drift
        if index in (120, 250):
            save(tmp_path / f"at-{index}", uninterrupted)
    assert bool(drifts) == (name in {"everything", "kswin", "adwin"})
    wanted = state_bytes(uninterrupted, tmp_path)
    for index in (120, 250):
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


def test_restored_is_uninterrupted_whatever_modes_the_modules_are_in(tmp_path: Path) -> None:
    subject = learner(network(dropout=0.5, batch_norm=True))
    subject.model[1].eval()  # type: ignore[index]
    subject.learn(*events(1)[0])
    modes = [module.training for module in subject.model.modules()]
    restored = learner(network(dropout=0.5, batch_norm=True))
    restored.model.eval()
    restored.load_state_dict(subject.state_dict())
    assert [module.training for module in restored.model.modules()] == modes
    for of in (subject, restored):
        for event in events(20):
            assert of.learn(*event).rows
    assert state_bytes(restored, tmp_path) == state_bytes(subject, tmp_path)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(("masked", "built_masked"), [(True, False), (False, True), (True, True)])
def test_restored_is_uninterrupted_with_masks(
    masked: bool, built_masked: bool, traced: bool, tmp_path: Path
) -> None:
    def build(keep: Tensor | None) -> OnlineLearner:
        model = network()
        graph = trace(model, torch.zeros(2, 4))
        built = learner(model, structure=graph if traced else None)
        if keep is not None:
            graph.apply([Mask("0.weight", keep=keep)], optimizer=built.optimizer)
        return built

    keep = torch.rand(6, 4, generator=torch.Generator().manual_seed(2)) > 0.5
    subject = build(keep if masked else None)
    for event in events(10):
        subject.learn(*event)
    restored = build(~keep if built_masked else None)
    restored.load_state_dict(subject.state_dict())
    for of in (subject, restored):
        for event in events(20, seed=1):
            of.learn(*event)
    assert state_bytes(restored, tmp_path) == state_bytes(subject, tmp_path)
    assert masked == (not restored.model.get_parameter("0.weight")[~keep].any())


def test_a_mask_taken_off_stays_off_where_the_width_changes_too(tmp_path: Path) -> None:
    def build() -> OnlineLearner:
        model = network()
        built = learner(model, structure=trace(model, torch.zeros(2, 4)))
        built.resize([Mask("0.weight", keep=torch.eye(6, 4) < 1)])
        return built

    subject = build()
    subject.resize([Mask("0.weight", keep=torch.ones(6, 4, dtype=torch.bool)), Grow("0", units=2)])
    restored = build()
    restored.load_state_dict(subject.state_dict())
    assert not masked_parameters(restored.model)
    for of in (subject, restored):
        for event in events(20):
            of.learn(*event)
    assert state_bytes(restored, tmp_path) == state_bytes(subject, tmp_path)


def test_restored_grows_as_the_uninterrupted_one_does(tmp_path: Path) -> None:
    def build() -> OnlineLearner:
        model = network()
        return learner(model, structure=trace(model, torch.zeros(2, 4)))

    subject = build()
    for _ in range(3):
        subject.resize([Grow("0", units=1)])
    restored = build()
    restored.load_state_dict(subject.state_dict())
    for of in (subject, restored):
        of.resize([Grow("0", units=1)])
    assert state_bytes(restored, tmp_path) == state_bytes(subject, tmp_path)


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
        (lambda: learner(nn.Linear(4, 3)), "belongs to another network"),
        (lambda: learner(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))), "to another network"),
        (lambda: learner(optimizer=torch.optim.Adam), "the optimizer is Adam"),
        (lambda: learner(detector="adwin"), "the detector is Replayed in the learner but none in"),
        (lambda: learner(lr=Fixed()), "the rate controller is Fixed in the learner but none in"),
        (lambda: learner(guard=Guard()), "the guard is Guard in the learner but none in the state"),
        (
            lambda: learner(reactions=[Replay(), RaiseRate()]),
            "the reactions are Replay, RaiseRate in the learner but none in the state",
        ),
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


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ({"detector": "adwin"}, {"detector": "page_hinkley"}),
        ({"lr": Fixed()}, {"lr": Other()}),
        ({"reactions": "replay"}, {"reactions": "raise_rate"}),
        ({"optimizer": torch.optim.Adam}, {"optimizer": torch.optim.AdamW}),
    ],
)
def test_a_state_of_another_part_is_refused_before_anything_changes(
    kind: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    subject = learner(**other)
    before = state_bytes(subject, tmp_path)
    with pytest.raises(CheckpointError, match="build this learner like the saved one"):
        subject.load_state_dict(learner(**kind).state_dict())
    assert state_bytes(subject, tmp_path) == before


def test_a_state_that_does_not_fit_leaves_structure_and_randomness_as_they_were(
    tmp_path: Path,
) -> None:
    def build(**settings: Any) -> OnlineLearner:
        model = network()
        return learner(model, structure=trace(model, torch.zeros(2, 4)), **settings)

    saved = build()
    saved.resize([Grow("0", units=2)])
    state = saved.state_dict()
    state["model"]["4.bias"] = torch.zeros(5)
    subject = build()
    before = state_bytes(subject, tmp_path)
    with pytest.raises(CheckpointError, match=r"'4\.bias' is \(5,\)"):
        subject.load_state_dict(state)
    assert state_bytes(subject, tmp_path) == before
    state["structure"]["widths"] = {"0": 0}
    with pytest.raises(CheckpointError, match=r"structure\.widths\.0 is 0"):
        subject.load_state_dict(state)
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
