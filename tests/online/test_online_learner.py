import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynopt_ray.errors import CheckpointError, DataError, DivergedError, UnknownNameError
from dynopt_ray.online import Guard, OnlineLearner, RaiseRate, Replay, Replayed, load, save
from dynopt_ray.online.detectors import adwin
from dynopt_ray.schedules import constant, cosine

SGD: Callable[..., torch.optim.Optimizer] = torch.optim.SGD


def network(*, seed: int = 0, dropout: float = 0.0, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    norm: nn.Module = nn.BatchNorm1d(6) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3))


def learner(model: nn.Module | None = None, **settings: Any) -> OnlineLearner:
    model = network() if model is None else model
    optimizer = settings.pop("optimizer", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    return OnlineLearner(model, optimizer(model.parameters()), **settings)


def events(num_events: int, *, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_events, 4, generator=generator)
    return [(row, row[:3].argmax()) for row in x]


def state_bytes(of: OnlineLearner, directory: Path) -> bytes:
    """The whole state as the bytes of a snapshot: equal bytes, equal learners."""
    save(directory / "compared", of)
    return (directory / "compared").read_bytes()


def test_learning_equals_a_plain_torch_loop() -> None:
    ours, theirs = learner(), network()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for x, y in events(50):
        ours.learn(x, y)
        optimizer.zero_grad()
        F.cross_entropy(theirs(x[None]), y[None]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for mine, reference in zip(ours.model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, reference)


def test_a_mini_batch_is_one_update_on_the_mean_loss() -> None:
    ours, theirs = learner(), network()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    x = torch.stack([x for x, _ in events(8)])
    y = torch.stack([y for _, y in events(8)])
    result = ours.learn(x, y)
    F.cross_entropy(theirs(x), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert result.rows == tuple(range(8))
    assert result.event == ours.events == 8
    assert ours.updates == 1
    for mine, reference in zip(ours.model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, reference)


def test_the_result_is_from_before_learning() -> None:
    subject = learner()
    x, y = events(1)[0]
    before = subject.predict(x)
    result = subject.learn(x, y)
    assert torch.equal(result.output[0], before)
    assert result.loss == pytest.approx(float(F.cross_entropy(before, y)))
    assert result.errors == (float(before.argmax() != y),)
    assert not torch.equal(subject.predict(x), before)


def test_predicting_changes_nothing(tmp_path: Path) -> None:
    model = network(dropout=0.5, batch_norm=True)
    model[1].eval()  # type: ignore[index]
    subject = learner(model)
    modes = [module.training for module in model.modules()]
    before, random_state = state_bytes(subject, tmp_path), torch.get_rng_state()
    outputs = [subject.predict(torch.ones(5, 4)) for _ in range(2)]
    assert torch.equal(outputs[0], outputs[1])
    assert state_bytes(subject, tmp_path) == before
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not outputs[0].requires_grad


def test_predicting_is_pure_even_where_the_network_draws_in_eval_mode() -> None:
    class Noisy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + torch.randn(3)

    subject, random_state = learner(Noisy(4, 3)), torch.get_rng_state()
    subject.predict(torch.ones(4))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_one_event_and_a_mini_batch_predict_alike() -> None:
    subject = learner()
    x = torch.stack([x for x, _ in events(3)])
    torch.testing.assert_close(subject.predict(x)[1], subject.predict(x[1]))
    subject.learn(*events(1)[0])
    assert subject.predict(x[1].tolist()).shape == (3,)
    with pytest.raises(DataError, match=r"shape \(5,\).*shape \(4,\)"):
        subject.predict(torch.ones(5))


def test_learning_does_not_depend_on_the_process_around_it(tmp_path: Path) -> None:
    states = []
    for disturbance in (0, 3):
        subject = learner(network(dropout=0.5))
        random_state = torch.get_rng_state()
        for x, y in events(20):
            torch.rand(disturbance)
            subject.predict(x)
            subject.learn(x, y)
        states.append(state_bytes(subject, tmp_path))
        if not disturbance:
            assert torch.equal(torch.get_rng_state(), random_state)
    assert states[0] == states[1]


def test_dropout_differs_between_updates_and_seeds() -> None:
    x, y = events(1)[0]
    model = network(dropout=0.5)

    def first_step(seed: int, updates: int) -> Tensor:
        subject = learner(copy.deepcopy(model), seed=seed, optimizer=lambda p: SGD(p, lr=1.0))
        subject.updates = updates
        subject.learn(x, y)
        return next(subject.model.parameters()).detach().clone()

    steps = [first_step(seed, updates) for seed in range(3) for updates in range(3)]
    assert len({tuple(step.flatten().tolist()) for step in steps}) > 4


def test_a_schedule_sets_the_rate_of_each_update() -> None:
    schedule = cosine(0.5, num_steps=4)
    subject = learner(lr=schedule)
    rates = [subject.learn(x, y).lr for x, y in events(4)]
    assert rates == [schedule(update) for update in range(4)]


class Halving:
    """A controller that halves the rate for each event with a loss above 1."""

    def __init__(self) -> None:
        self.rate = 0.5

    def __call__(self, _update: int) -> float:
        return self.rate

    def observe(self, loss: float) -> None:
        self.rate *= 0.5 if loss > 1 else 1.0

    def state_dict(self) -> dict[str, float]:
        return {"rate": self.rate}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.rate = state["rate"]


def test_a_controller_sees_the_losses_and_is_restored() -> None:
    subject = learner(lr=Halving())
    results = [subject.learn(x, y) for x, y in events(30)]
    above = np.cumsum([result.loss > 1 for result in results])
    assert 0 < above[-1] < 30
    assert [result.lr for result in results[1:]] == [0.5 * 0.5**n for n in above[:-1]]
    restored = learner(lr=Halving())
    restored.load_state_dict(subject.state_dict())
    assert restored.learn(*events(1)[0]).lr == 0.5 * 0.5 ** above[-1]
    with pytest.raises(CheckpointError, match="has an LR controller"):
        learner().load_state_dict(subject.state_dict())


def test_without_a_schedule_the_rate_stays_the_users() -> None:
    subject = learner()
    subject.optimizer.param_groups[0]["lr"] = 0.02
    assert subject.learn(*events(1)[0]).lr == 0.02


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1.0, math.nan, 0.0, 0.0], 1, "x[1] is nan"),
        ([1.0, 0.0, 0.0, -math.inf], 1, "x[3] is -inf"),
        ([1.0, 0.0, 0.0, 0.0], 3, "y is 3; the network knows classes 0 to 2"),
        ([1.0, 0.0, 0.0, 0.0], -1, "y is -1"),
        ([1.0, 0.0, 0.0, 0.0], 1.5, "y is torch.float32; classes are whole numbers"),
        ([1.0, 0.0, 0.0], 1, "x has shape (3,)"),
        ([[[1.0]]], 1, "x has shape (1, 1, 1)"),
        ([[0.0] * 4] * 2, [0, 1, 2], "x holds 2 events but y 3"),
        (["a", "b", "c", "d"], 1, "not numeric"),
        ([[1.0], [2.0, 3.0]], 1, "not numeric"),
    ],
)
def test_a_bad_event_is_quarantined_and_the_learner_goes_on(x: Any, y: Any, reason: str) -> None:
    good = events(10)
    subject, undisturbed = learner(guard=Guard()), learner(guard=Guard())
    for event in good[:5]:
        subject.learn(*event)
        undisturbed.learn(*event)
    result = subject.learn(x, y)
    assert not result.rows
    assert result.verdict is None
    assert math.isnan(result.loss)
    assert reason in result.rejected[0].reason
    assert result.rejected[0].event == 6
    assert subject.quarantine.total == 1
    assert subject.quarantine.latest[-1] == result.rejected[0]
    for event in good[5:]:
        subject.learn(*event)
        undisturbed.learn(*event)
    for a, b in zip(subject.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_first_event_of_the_wrong_shape_does_not_decide_the_shape() -> None:
    subject = learner()
    result = subject.learn([1.0, 2.0], 0)
    assert "the network refuses an event of shape (2,)" in result.rejected[0].reason
    assert subject.learn(*events(1)[0]).rows == (0,)


def test_one_bad_row_does_not_cost_its_mini_batch() -> None:
    x = torch.stack([x for x, _ in events(6)])
    y = torch.stack([y for _, y in events(6)])
    bad_x, bad_y = x.clone(), y.clone()
    bad_x[2, 1] = math.nan
    bad_y[4] = 7
    subject, undisturbed = learner(), learner()
    result = subject.learn(bad_x, bad_y)
    undisturbed.learn(x[[0, 1, 3, 5]], y[[0, 1, 3, 5]])
    assert result.rows == (0, 1, 3, 5)
    assert [(r.event, r.reason[:9]) for r in result.rejected] == [
        (3, "x[1] is n"),
        (5, "y is 7; t"),
    ]
    for a, b in zip(subject.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_empty_mini_batch_is_no_event(tmp_path: Path) -> None:
    subject = learner()
    subject.learn(*events(1)[0])
    before = state_bytes(subject, tmp_path)
    result = subject.learn(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    assert (result.event, result.rows, result.rejected) == (1, (), ())
    assert state_bytes(subject, tmp_path) == before


def test_only_the_latest_reasons_are_kept() -> None:
    subject = learner()
    for _ in range(50):
        subject.learn([math.nan] * 4, 0)
    assert subject.quarantine.total == subject.events == 50
    assert [r.event for r in subject.quarantine.latest] == list(range(31, 51))


def test_an_extreme_event_is_quarantined() -> None:
    model = nn.Linear(4, 3)
    model.weight.data.fill_(100.0)
    result = learner(model).learn([3e38] * 4, 0)
    assert result.rejected[0].reason == "the network's output[0] is inf"


@pytest.mark.parametrize(
    ("weight", "symptom", "quarantined"),
    [(1e30, "its output was not finite for 10 events in a row", 9), (math.inf, "weights", 0)],
)
def test_a_diverged_network_says_so_and_nothing_is_changed(
    weight: float, symptom: str, quarantined: int, tmp_path: Path
) -> None:
    subject = learner()
    for parameter in subject.model.parameters():
        parameter.data.fill_(weight)
    for _ in range(3):
        for x, y in events(quarantined - subject.quarantine.total):
            subject.learn(x.abs(), y)
        # The count of overflows is part of the state, or a restart would hide them.
        restored = learner()
        restored.load_state_dict(subject.state_dict())
        with pytest.raises(DivergedError, match=symptom):
            restored.learn([1.0, 2.0, 3.0, 4.0], 0)
        before = state_bytes(subject, tmp_path)
        with pytest.raises(DivergedError, match=f"has diverged.*{symptom}.*Guard"):
            subject.learn([1.0, 2.0, 3.0, 4.0], 0)
        assert state_bytes(subject, tmp_path) == before
    assert subject.quarantine.total == quarantined


def test_targets_may_be_numbers() -> None:
    model = nn.Linear(4, 1)
    subject = OnlineLearner(model, torch.optim.SGD(model.parameters(), lr=0.05), loss=F.mse_loss)
    losses = [subject.learn(x, [float(x.sum())]).loss for x, _ in events(300)]
    assert np.mean(losses[-50:]) < 0.01 * np.mean(losses[:50])
    x, y = torch.ones(3, 4), torch.tensor([[4.0], [0.0], [math.nan]])
    result = subject.learn(x, y)
    assert result.rows == (0, 1)
    assert result.errors[1] == pytest.approx(16, rel=0.05)


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


@pytest.mark.parametrize("kind", ["loss", "detector", "reactions"])
def test_unknown_names_are_refused(kind: str) -> None:
    settings: dict[str, Any] = {kind: "nothing_like_it"}
    with pytest.raises(UnknownNameError, match="'nothing_like_it'"):
        learner(None, **settings)


def test_a_frozen_copy_does_not_follow() -> None:
    subject = learner()
    x, y = events(1)[0]
    before = subject.predict(x)
    frozen = subject.freeze()
    subject.learn(x, y)
    assert torch.equal(frozen.predict(x), before)
    assert frozen.events == 0
    assert subject.freeze().events == 1
    assert torch.equal(subject.freeze().predict(x), subject.predict(x))
