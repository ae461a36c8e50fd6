"""Bad events: set aside with the reason, and the learner goes on."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynopt_ray.errors import DivergedError
from dynopt_ray.online import Guard
from tests.online.learners import events, learner, state_bytes


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
