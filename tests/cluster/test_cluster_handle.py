"""The handle of a remote learner, tested with a plain object in this process as its actor."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorUnavailableError
from torch import nn

from dynopt_ray.cluster import RemoteLearner
from dynopt_ray.cluster.learners import handle as remote
from dynopt_ray.cluster.learners.actor import LearnerActor
from dynopt_ray.errors import DataError, LearnerError
from dynopt_ray.online import OnlineLearner

Handle = Callable[..., RemoteLearner]


def build() -> OnlineLearner:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return OnlineLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))


class Local:
    """An actor without Ray: `remote` returns a function, which the patched `ray.get` calls."""

    def __init__(self, actor: LearnerActor) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.actor, name)
        return type("Method", (), {"remote": staticmethod(lambda *args: partial(method, *args))})


@pytest.fixture
def handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Handle]:
    """Makes handles that use a `Local` actor."""
    actor = LearnerActor(build, tmp_path / "d", snapshot_every=100, num_threads=1)
    monkeypatch.setattr(remote, "start_actor", lambda *_, **__: Local(actor))
    monkeypatch.setattr(ray, "get", lambda call, timeout=None: call())  # noqa: ARG005
    monkeypatch.setattr(ray, "kill", lambda _: None)
    made = []

    def make(**settings: Any) -> RemoteLearner:
        made.append(RemoteLearner(build, tmp_path / "d", **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()
    actor._durable.close()


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.ones(4, dtype=">f4"), np.asarray(1, dtype=">i8")),
        (torch.ones(4, dtype=torch.bfloat16), torch.tensor(1)),
        (np.ones((4, 2))[:, 0], np.uint16(1)),
    ],
)
def test_types_that_can_be_kept_exactly_are_converted(x: Any, y: Any, handle: Handle) -> None:
    learner = handle()
    result = learner.learn(x, y).result(timeout=10)
    assert result is not None
    assert result.rows == (0,)
    torch.testing.assert_close(learner.predict(x).output, learner.predict(np.ones(4)).output)


@pytest.mark.parametrize(
    ("y", "reason"),
    [
        (np.asarray(1, dtype=np.uint64), "y is an array of uint64; convert it to one of"),
        (np.asarray(1, dtype=np.longdouble), "y is an array of float128"),
        (1j, "y is an array of complex128"),
        (torch.tensor(1 + 1j), "y is an array of complex64"),
        (torch.ones(1).to_sparse(), "y is not an array of numbers"),
        ([[1], [2, 3]], "y is not an array of numbers"),
    ],
)
def test_types_that_cannot_be_kept_are_refused_before_queueing(
    y: Any, reason: str, handle: Handle
) -> None:
    learner = handle()
    with pytest.raises(DataError, match=reason):
        learner.learn(np.ones(4), y)
    assert learner.learn(np.ones(4), 1).result(timeout=10) is not None
    assert learner.status().sequence == 1


def test_an_array_may_be_changed_while_its_event_waits(handle: Handle) -> None:
    learner, x = handle(), np.ones(4)
    # Nothing is sent as long as this thread holds the lock.
    with learner._changed:
        learned = learner.learn(x, 1)
        x[:] = np.nan
    result = learned.result(timeout=10)
    assert result is not None
    assert result.rows == (0,)


def test_of_two_simultaneous_labels_of_a_prediction_one_is_refused(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = handle()
    prediction = learner.predict(np.ones(4))
    learn = learner.learn

    def learn_while_another_labels(x: Any, y: Any) -> Any:
        with pytest.raises(LearnerError, match="does not wait for a label"):
            learner.label(prediction.id, y)
        return learn(x, y)

    monkeypatch.setattr(learner, "learn", learn_while_another_labels)
    learner.label(prediction.id, 1).result(timeout=10)
    assert learner.status().sequence == 1


def test_a_label_that_could_not_be_sent_may_be_given_again(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = handle(max_unlabelled=2)
    predictions = [learner.predict(np.ones(4)) for _ in range(2)]
    with pytest.raises(DataError, match="y is an array of <U1"):
        learner.label(predictions[1].id, "a")
    with monkeypatch.context() as patch:
        patch.setattr(learner._pending, "has_room", lambda _: False)
        patch.setattr(learner, "_timeout_s", 0.0)
        with pytest.raises(LearnerError, match="wait to be learned"):
            learner.label(predictions[1].id, 1)
    for prediction in predictions:
        assert learner.label(prediction.id, 1).result(timeout=10) is not None
    assert learner.status().sequence == 2


def failing(call: Callable[..., Any], *, times: int, after_s: float) -> Callable[..., Any]:
    left = [times]

    def called(*args: Any) -> Any:
        if left[0]:
            left[0] -= 1
            time.sleep(after_s)
            raise ActorUnavailableError("gone", None)
        return call(*args)

    return called


def test_the_timeout_starts_when_the_actor_is_found_missing(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = handle(timeout_s=0.5)
    actor: LearnerActor = learner._call.actor.actor
    # The call runs for longer than the timeout, and then the actor dies.
    monkeypatch.setattr(actor, "learn", failing(actor.learn, times=1, after_s=0.8))
    result = learner.learn(np.ones(4), 1).result(timeout=10)
    assert result is not None
    assert result.rows == (0,)


def test_a_missing_actor_is_given_up_after_the_timeout(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = handle(timeout_s=0.3)
    actor: LearnerActor = learner._call.actor.actor
    monkeypatch.setattr(actor, "learn", failing(actor.learn, times=100, after_s=0.0))
    with pytest.raises(LearnerError, match=r"has not come back in 0\.3 s"):
        learner.learn(np.ones(4), 1).result(timeout=10)


def test_every_restart_of_the_actor_has_the_whole_timeout(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor that comes back and dies again, e.g. for lack of memory, was not missing."""
    learner = handle(timeout_s=0.5)
    actor: LearnerActor = learner._call.actor.actor
    monkeypatch.setattr(actor, "learn", failing(actor.learn, times=4, after_s=0.2))
    result = learner.learn(np.ones(4), 1).result(timeout=10)
    assert result is not None
    assert result.rows == (0,)


def test_an_actor_that_does_not_answer_after_a_restart_is_given_up(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = handle(timeout_s=0.3)
    actor: LearnerActor = learner._call.actor.actor
    monkeypatch.setattr(actor, "learn", failing(actor.learn, times=1, after_s=0.2))
    monkeypatch.setattr(actor, "status", failing(actor.status, times=100, after_s=0.0))
    with pytest.raises(LearnerError, match=r"has not come back in 0\.3 s"):
        learner.learn(np.ones(4), 1).result(timeout=10)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_pending", 0), ("batch_size", 0), ("max_bytes", 0), ("max_unlabelled", -1)],
)
def test_bounds_out_of_range_are_refused(name: str, value: int, handle: Handle) -> None:
    with pytest.raises(ValueError, match=rf"{name} is {value}; it must be at least"):
        handle(**{name: value})


def test_without_room_for_unlabelled_events_predictions_are_served(handle: Handle) -> None:
    learner = handle(max_unlabelled=0)
    prediction = learner.predict(np.ones(4))
    with pytest.raises(LearnerError, match="is too old"):
        learner.label(prediction.id, 1)


def test_unlabelled_events_are_bounded_in_bytes(handle: Handle) -> None:
    learner = handle(max_bytes=2**20)
    rows = np.ones((2_000, 4))  # 64,000 bytes
    ids = [learner.predict(rows).id for _ in range(100)]
    kept = learner._unlabelled
    assert kept._num_bytes == 16 * rows.nbytes <= 2**20
    with pytest.raises(LearnerError, match="is too old"):
        learner.label(ids[83], np.ones(2_000, np.int64))
    assert learner.label(ids[84], np.ones(2_000, np.int64)).result(timeout=10) is not None
    assert kept._num_bytes == 15 * rows.nbytes
    # A single event may be larger than the bound.
    huge = learner.predict(np.ones((50_000, 4)))
    assert len(kept._events) == 1
    assert learner.label(huge.id, np.ones(50_000, np.int64)).result(timeout=10) is not None
    assert kept._num_bytes == 0


def test_pending_events_are_bounded_in_bytes(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = handle(max_bytes=10_000, timeout_s=0.05)
    actor, go_on = learner._call.actor.actor, threading.Event()
    learn = actor.learn
    monkeypatch.setattr(actor, "learn", lambda *args: go_on.wait(10) and learn(*args))
    event = np.ones((100, 4)), np.ones(100, np.int64)  # 4,000 bytes and some
    waiting = [learner.learn(*event) for _ in range(2)]
    with pytest.raises(LearnerError, match="2 events wait to be learned"):
        learner.learn(*event)
    go_on.set()
    assert all(learned.result(timeout=10) is not None for learned in waiting)
    learner.flush()
    large = np.ones((1_000, 4)), np.ones(1_000, np.int64)
    assert learner.learn(*large).result(timeout=10) is not None
    learner.flush()
    assert learner._pending._num_bytes == 0


def test_the_sender_splits_what_no_record_of_the_journal_holds(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event alone fits."""
    monkeypatch.setattr("dynopt_ray.online.durable.journal.MAX_BODY_BYTES", 10_000)
    monkeypatch.setattr(remote, "_CALL_BYTES", 10_000)
    learner = handle()
    with learner._changed:  # they gather in one batch
        waiting = [learner.learn(np.ones((100, 4)), np.ones(100, np.int64)) for _ in range(7)]
    assert all(learned.result(timeout=10) is not None for learned in waiting)
    assert learner.status().sequence == 7


def test_an_event_that_no_journal_holds_is_refused_before_queueing(handle: Handle) -> None:
    learner = handle()
    with pytest.raises(DataError, match=r"shape \(8589934592, 0\); a journal keeps at most"):
        learner.learn(np.empty((2**33, 0)), 0)
    assert learner.learn(np.ones(4), 1).result(timeout=10) is not None
    assert learner.status().sequence == 1
