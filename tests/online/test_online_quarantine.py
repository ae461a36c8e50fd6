"""Bad events: set aside with the reason, and the learner goes on."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import DivergedError
from dynopt_ray.online import Guard, Replay
from dynopt_ray.schedules import cosine
from dynopt_ray.storage import write_state
from tests.online.learners import events, learner, network, state_bytes


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
        ([[0.0] * 4] * 2, [0, 1, 2], "x holds 2 events but y holds 3"),
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


class Fussy(nn.Module):
    """A network that takes an event in eval mode and refuses it, half-way through, in train mode.

    What it refuses are events that begin with a 9.
    """

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(nn.functional.dropout(self.norm(x), 0.3, self.training))
        if self.training and x[0, 0] == 9:
            if self.where == "forward":
                raise ValueError("no nines")
            output.register_hook(self._refuse)  # type: ignore[no-untyped-call]
        return output

    def _refuse(self, _: Tensor) -> None:
        raise RuntimeError("no nines")


@pytest.mark.parametrize("guard", [None, Guard(window=16)])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_mini_batch_refused_in_training_changes_nothing_but_the_counts(
    where: str, guard: Guard | None, tmp_path: Path
) -> None:
    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    nines = x.clone()
    nines[0, 0] = 9
    torch.manual_seed(0)
    subject = learner(Fussy(where), guard=guard, lr=cosine(0.1, num_steps=5), detector="adwin")
    subject.learn(x, y)
    before, random_state = subject.state_dict(), torch.get_rng_state()
    result = subject.learn(nines, y)
    assert (result.rows, result.verdict, result.errors) == ((), None, ())
    assert [r.event for r in result.rejected] == list(range(9, 17))
    reason = "the network cannot be trained on 8 event(s) of shape (4,) in train mode: no nines"
    assert {r.reason for r in result.rejected} == {reason}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert subject.quarantine.total == subject.events - 8 == 8
    # The counts apart, it is the learner that never met them, and goes on like it.
    after = subject.state_dict()
    after["counters"]["events"] = before["counters"]["events"]
    after["quarantine"] = before["quarantine"]
    write_state(tmp_path / "before", before, kind="learner")
    write_state(tmp_path / "after", after, kind="learner")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()
    assert subject.learn(x, y).rows == tuple(range(8))


def test_each_row_keeps_the_first_reason_against_it() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    x[0, 0], x[1, 2] = 9, math.nan
    torch.manual_seed(0)
    result = learner(Fussy("forward")).learn(x, [0, 1, 2])
    assert not result.rows
    reasons = {rejected.event: rejected.reason for rejected in result.rejected}
    assert reasons[2] == "x[2] is nan"
    assert reasons[1] == reasons[3]
    assert "cannot be trained on 2 event(s)" in reasons[1]


@pytest.mark.parametrize("loss", ["cross_entropy", nn.functional.cross_entropy])
def test_probabilities_are_no_labels_for_a_loss_of_classes_by_name(loss: Any) -> None:
    result = learner(loss=loss).learn([0.0] * 4, [0.2, 0.3, 0.5])
    assert bool(result.rows) == callable(loss)
    if not callable(loss):
        assert result.rejected[0].reason.startswith("y has shape (3,); the network needs ()")


@pytest.mark.parametrize(
    ("y", "reason"),
    [
        ([math.nan, 0.0, 0.0], "y[0] is nan"),
        ([0.0, 0.0, -math.inf], "y[2] is -inf"),
        ([1e30, 0.0, 0.0], "the loss of the event is inf"),
    ],
)
def test_a_target_that_leaves_no_loss_is_quarantined(y: list[float], reason: str) -> None:
    subject = learner(loss="mse")
    result = subject.learn([0.0] * 4, y)
    assert [rejected.reason for rejected in result.rejected] == [reason]
    assert subject.learn([0.0] * 4, [1.0, 0.0, 0.0]).rows == (0,)


def test_one_label_for_several_events_is_quarantined() -> None:
    subject = learner()
    subject.learn([0.0] * 4, 1)
    result = subject.learn([[0.0] * 4] * 2, 1)
    assert result.rejected[0].reason.startswith("x holds 2 events but y holds one label(s)")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.int64])
def test_labels_may_be_whole_numbers_of_any_size(dtype: torch.dtype) -> None:
    subject, plain = learner(), learner()
    x = torch.stack([x for x, _ in events(6)])
    y = torch.arange(6) % 2
    assert subject.learn(x, y.to(dtype)).rows == tuple(range(6))
    assert plain.learn(x, y).errors == learner().learn(x, y.to(dtype)).errors
    for one, other in zip(subject.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_single_event_cannot_train_batch_norm_and_is_quarantined() -> None:
    subject = learner(network(batch_norm=True))
    result = subject.learn(*events(1)[0])
    assert not result.rows
    assert "1 event(s) of shape (4,) in train mode: Expected more than 1 value per channel" in (
        result.rejected[0].reason
    )
    assert subject.updates == 0
    # In eval mode its statistics are given, and one event is enough.
    subject.model.eval()
    assert subject.learn(*events(1)[0]).rows == (0,)


def test_a_replay_leaves_out_a_mini_batch_that_the_network_refuses() -> None:
    subject = learner(network(batch_norm=True), reactions=Replay(batch_size=4))
    x = torch.stack([x for x, _ in events(5)])
    y = torch.stack([y for _, y in events(5)])
    subject.learn(x, y)
    updates = subject.updates
    subject.reactions[0](subject, drift=True)
    # Five events are a mini-batch of four and one of one.
    assert subject.updates == updates + 2


@pytest.mark.parametrize(
    ("y", "guard", "reason"),
    [
        ([1.0, 2.0], None, "the loss refuses an event of shape (4,)"),
        ([1.0, 2.0], Guard(), "the loss refuses an event of shape (4,)"),
        # Without a window to keep it in, what the loss makes of it counts.
        (
            [[1.0] * 3] * 2,
            Guard(),
            "y has shape (2, 3); the targets of this stream have shape (3,)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_target_of_another_shape_is_quarantined(y: Any, guard: Guard | None, reason: str) -> None:
    subject = learner(loss=nn.functional.mse_loss, guard=guard)
    assert subject.learn([1.0] * 4, [1.0, 2.0, 3.0]).rows == (0,)
    result = subject.learn([1.0] * 4, y)
    assert not result.rows
    assert result.rejected[0].reason.startswith(reason)
    assert subject.learn([1.0] * 4, [1.0, 2.0, 3.0]).rows == (0,)


@pytest.mark.parametrize("num_events", [1, 2])
def test_a_window_that_the_network_refuses_costs_an_event_not_the_learner(num_events: int) -> None:
    class Single(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if len(input) > num_events:
                raise ValueError("too many")
            return super().forward(input)

    subject = learner(Single(4, 3), guard=Guard(window=8))
    results = [subject.learn(*event) for event in events(4)]
    assert [bool(result.rows) for result in results] == [i < num_events + 1 for i in range(4)]
    assert results[-1].rejected[0].reason.startswith("the network refuses")
    assert subject.updates == num_events + 1


@pytest.mark.parametrize("name", ["OutOfMemoryError", "AcceleratorError"])
def test_a_failing_device_is_no_fault_of_the_event(name: str, tmp_path: Path) -> None:
    kind = getattr(torch, name, torch.OutOfMemoryError)

    class Full(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if self.training:
                raise kind("no memory")
            return super().forward(input)

    subject = learner(Full(4, 3))
    before = state_bytes(subject, tmp_path)
    with pytest.raises(kind, match="no memory"):
        subject.learn(*events(1)[0])
    assert state_bytes(subject, tmp_path) == before


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


def test_extreme_events_beside_good_ones_are_no_divergence() -> None:
    """Ten calls in a row of which nothing could be learned would be."""
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, 100.0)
    subject = learner(model, optimizer=lambda p: torch.optim.SGD(p, lr=1e-9))
    extreme = [3e38] * 4
    for _ in range(25):
        assert subject.learn([extreme, [0.1] * 4], [0, 1]).rows == (1,)
    for _ in range(9):
        assert not subject.learn(extreme, 0).rows
    assert subject.learn([extreme, [0.1] * 4], [0, 1]).rows == (1,)
    for _ in range(9):
        assert not subject.learn(extreme, 0).rows
    with pytest.raises(DivergedError, match="for 10 events in a row"):
        subject.learn(extreme, 0)


def test_a_step_after_which_the_network_refuses_the_window_is_taken_back() -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            if not self.training and abs(float(self.w)) > 1.3:
                raise ValueError("out of bounds")
            return self.w.expand(len(x))

    def squared(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    for max_halvings, verdict, weight in ((0, "rolled back", 1.0), (2, "shrunk", 1.2)):
        guard = Guard(max_halvings=max_halvings)
        sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
        subject = learner(Bounded(), loss=squared, guard=guard, **sgd)
        # From 1 to 1.4 where the network no longer runs; half of the step is fine.
        assert subject.learn(0.0, 3.0).verdict == verdict
        assert next(subject.model.parameters()).item() == pytest.approx(weight)


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
