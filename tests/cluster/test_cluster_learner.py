import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch import nn

from dynopt_ray.cluster import RemoteLearner, session
from dynopt_ray.cluster.learners.actor import LearnerActor
from dynopt_ray.errors import ClusterError, DataError, LearnerError, PluginError
from dynopt_ray.online import DurableLearner, Guard, OnlineLearner
from dynopt_ray.storage import read_state, write_state

SETTINGS: dict[str, Any] = {"num_cpus": 0, "snapshot_every": 150}


def build() -> OnlineLearner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return OnlineLearner(model, optimizer, detector="adwin", guard=Guard(window=8), seed=3)


def build_badly() -> OnlineLearner:
    raise RuntimeError("no such network")


def events(num_events: int) -> list[tuple[np.ndarray, int]]:
    x = np.random.default_rng(0).normal(size=(num_events, 4)).astype(np.float32)
    x[7:8, 1] = np.nan
    return [(row, int(row[:3].argmax())) for row in x]


def undisturbed(stream: list[tuple[np.ndarray, int]], directory: Path) -> bytes:
    """Return the state of the same learner without Ray, without a journal and without a crash."""
    torch.set_num_threads(1)
    learner = build()
    for x, y in stream:
        learner.learn(x, y)
    write_state(directory / "undisturbed", learner.state_dict(), kind="learner")
    return (directory / "undisturbed").read_bytes()


def state_of(directory: Path, tmp_path: Path) -> bytes:
    write_state(
        tmp_path / "state",
        read_state(directory / "snapshot.safetensors", kind="durable learner")["learner"],
        kind="learner",
    )
    return (tmp_path / "state").read_bytes()


def test_the_object_in_the_actor_works_without_ray(tmp_path: Path) -> None:
    actor = LearnerActor(build, tmp_path / "d", snapshot_every=5, num_threads=1)
    stream = [(x, np.asarray(y)) for x, y in events(20)]
    before = actor.predict(stream[0][0])
    assert actor.learn(1, stream[:12]).sequence == 12
    assert not torch.equal(actor.predict(stream[0][0]), before)
    assert actor.status().sequence == 12
    assert actor.status().quarantined == 1
    actor.close()
    again = LearnerActor(f"{__name__}:build", tmp_path / "d", snapshot_every=5, num_threads=1)
    again.learn(10, stream[9:])
    again.close()
    assert state_of(tmp_path / "d", tmp_path) == undisturbed(events(20), tmp_path)


@pytest.mark.parametrize("path", [f"{__name__}:SETTINGS", "math:pi"])
def test_a_path_that_leads_to_no_function_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=rf"build='{path}' is .*, not a function; give the path"):
        LearnerActor(path, tmp_path, snapshot_every=5, num_threads=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with session(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[RemoteLearner]:
    """One learner for all tests that do not break it, because starting an actor takes seconds."""
    request.getfixturevalue("cluster")
    directory: Path = request.getfixturevalue("tmp_path_factory").mktemp("shared")
    with RemoteLearner(build, directory / "d", max_unlabelled=50, **SETTINGS) as learner:
        yield learner


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
class TestRemote:
    def test_after_sigkill_the_learner_equals_one_that_never_died(self, tmp_path: Path) -> None:
        stream = events(1_500)
        learned, pids = [], set()
        with RemoteLearner(build, tmp_path / "d", batch_size=40, **SETTINGS) as learner:
            for index, (x, y) in enumerate(stream[:1_400]):
                learned.append(learner.learn(x, y))
                if index in (400, 900):
                    learned[index - 50].result(timeout=30)
                    pids.add(learner.status().pid)
                    os.kill(learner.status().pid, signal.SIGKILL)
            learner.flush()
            pids.add(learner.status().pid)
            assert len(pids) == 3
            assert learner.status().sequence == 1_400
            assert learner.status().quarantined == 1
            results = [future.result() for future in learned]
        # An event has no result if the actor died before it could reply: one batch per kill.
        assert sum(result is None for result in results) <= 2 * 40
        assert [r.event for r in results if r is not None] == [
            place for place, r in enumerate(results, start=1) if r is not None
        ]
        # A later handle on the same directory continues.
        with RemoteLearner(build, tmp_path / "d", **SETTINGS) as learner:
            for x, y in stream[1_400:]:
                learner.learn(x, y)
        assert state_of(tmp_path / "d", tmp_path) == undisturbed(stream, tmp_path)

    def test_kept_results_survive_the_actor_and_the_handle(self, tmp_path: Path) -> None:
        stream, settings = events(600), {**SETTINGS, "snapshot_every": None}
        with RemoteLearner(build, tmp_path / "d", batch_size=40, **settings) as learner:
            learned = [learner.learn(x, y) for x, y in stream[:300]]
            learned[150].result(timeout=30)
            os.kill(learner.status().pid, signal.SIGKILL)
            before = [future.result() for future in learned]
        with RemoteLearner(build, tmp_path / "d", next_event=201, **settings) as learner:
            learned = [learner.learn(x, y) for x, y in stream[200:]]
            after = [future.result() for future in learned]
        assert [r.event for r in before if r] == list(range(1, 301))
        assert [r.event for r in after if r] == list(range(201, 601))
        assert [r.loss for r in after[:100] if r] == [r.loss for r in before[200:] if r]

    def test_labels_may_come_later(self, shared: RemoteLearner) -> None:
        stream = events(100)
        before = shared.status().sequence
        predictions = [shared.predict(x) for x, _ in stream if np.isfinite(x).all()]
        assert predictions[0].output.shape == (3,)
        assert shared.status().sequence == before
        with pytest.raises(LearnerError, match=r"does not wait for a label.* is too old"):
            shared.label(predictions[-51].id, 0)
        result = shared.label(predictions[-50].id, 2).result(timeout=20)
        assert result is not None
        assert torch.equal(result.output[0], predictions[-50].output)
        with pytest.raises(LearnerError, match="it was labelled"):
            shared.label(predictions[-50].id, 0)

    def test_predictions_do_not_wait_for_learning(self, shared: RemoteLearner) -> None:
        x = np.ones(4, dtype=np.float32)
        for event in events(2_000):
            last = shared.learn(*event)
        outputs = {tuple(shared.predict(x).output.tolist()) for _ in range(20)}
        assert not last.done()
        last.result(timeout=60)
        # After the batch, another network predicts.
        assert tuple(shared.predict(x).output.tolist()) not in outputs

    def test_a_full_queue_pushes_back(
        self, shared: RemoteLearner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = shared.status()
        monkeypatch.setattr(shared._pending, "_max_events", 5)
        monkeypatch.setattr(shared, "_timeout_s", 0.0)
        os.kill(before.pid, signal.SIGSTOP)
        try:
            for event in events(5):
                shared.learn(*event)
            with pytest.raises(LearnerError, match="5 events wait to be learned"):
                shared.learn(*events(1)[0])
        finally:
            os.kill(before.pid, signal.SIGCONT)
        shared.flush()
        # With a longer timeout, `learn` waits for room instead.
        monkeypatch.setattr(shared, "_timeout_s", 20.0)
        for event in events(50):
            shared.learn(*event)
            assert len(shared._pending) <= 5
        shared.flush()
        assert shared.status().sequence == before.sequence + 55

    def test_data_that_are_not_numbers_are_refused_before_sending(
        self, shared: RemoteLearner
    ) -> None:
        before = shared.status().sequence
        with pytest.raises(DataError, match="x is an array of <U1"):
            shared.learn(["a"], 0)
        with pytest.raises(DataError, match="y is an array of object"):
            shared.learn([1.0], None)
        result = shared.learn(torch.ones(4), 2).result(timeout=20)
        assert result is not None
        assert result.event == before + 1

    def test_errors_of_a_prediction_reach_the_caller(self, shared: RemoteLearner) -> None:
        shared.learn(*events(1)[0]).result(timeout=20)
        with pytest.raises(DataError, match=r"x has shape \(3,\)"):
            shared.predict(np.ones(3))

    def test_a_learner_that_cannot_be_built_says_why(self, tmp_path: Path) -> None:
        with pytest.raises(LearnerError, match="RuntimeError: no such network"):
            RemoteLearner(build_badly, tmp_path / "d", **SETTINGS)
        with (
            DurableLearner(build, tmp_path / "e"),
            pytest.raises(LearnerError, match="in use by another process"),
        ):
            RemoteLearner(build, tmp_path / "e", **SETTINGS)

    def test_an_actor_without_room_on_the_cluster_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ClusterError, match="did not start in 1 s; free now: 2 CPUs"):
            RemoteLearner(build, tmp_path / "d", num_cpus=64, timeout_s=1.0)

    def test_a_handle_whose_actor_is_gone_for_good_says_so(self, tmp_path: Path) -> None:
        learner = RemoteLearner(build, tmp_path / "d", **SETTINGS)
        learner.learn(*events(1)[0]).result(timeout=20)
        ray.kill(learner._call.actor)  # takes a moment, during which the actor may still reply
        with pytest.raises(LearnerError, match="will not be restarted"):  # noqa: PT012
            for _ in range(10_000):
                learner.learn(*events(1)[0]).result(timeout=20)
        with pytest.raises(LearnerError, match="takes no more events"):
            learner.learn(*events(1)[0])
        with pytest.raises(LearnerError, match="takes no more events"):
            learner.flush()
        learner.close()
        learner.close()
        with pytest.raises(LearnerError, match="is closed"):
            learner.learn(*events(1)[0])


@pytest.mark.parametrize("wrong", ["max_pending", "batch_size"])
def test_settings_out_of_range_are_refused(wrong: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {wrong: 0}
    with pytest.raises(ValueError, match=f"{wrong} is 0"):
        RemoteLearner(build, tmp_path, **settings)
