"""Trackers, and the use of slots over time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tensorboardX.proto.event_pb2 import Event

from dynopt_ray.cluster import busy_share, search, slot_use
from dynopt_ray.cluster.tracking import Tracker, make_trackers
from dynopt_ray.errors import DynoptError, SpecError
from dynopt_ray.journals import RunRecord, read_journal
from dynopt_ray.journals.lines import lines_at

SPACE = {"x": [1, 2, 3], "lr": [{"name": "cosine", "initial": [0.1, 0.2]}]}


def two_steps(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"step": 5, "accuracy": config["x"] / 10, "loss": 1.0}
    if config["x"] == 3:
        raise ValueError("three")
    yield {"step": 9, "accuracy": config["x"] / 5, "loss": 0.5, "final": True}


def run(storage: Path | None = None, **arguments: Any) -> None:
    search(two_steps, SPACE, searcher="grid", local=True, storage=storage, **arguments)


class Notes:
    """A tracker of one's own, which may break at its nth call."""

    def __init__(self, breaks_at: int = 10**6) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._breaks_at = breaks_at

    def started(self, trial: int, config: Mapping[str, Any]) -> None:
        self._tell("started", trial, dict(config))

    def measured(self, trial: int, row: Mapping[str, float]) -> None:
        self._tell("measured", trial, dict(row))

    def ended(self, trial: int, status: str, error: str) -> None:
        self._tell("ended", trial, status, error)

    def close(self) -> None:
        self._tell("closed")

    def _tell(self, *what: Any) -> None:
        if len(self.told) == self._breaks_at:
            raise ConnectionError("the server is away")
        self.told.append(what)


def test_a_tracker_is_told_everything_in_order() -> None:
    notes = Notes()
    run(trackers=[notes])
    assert notes.told[:4] == [
        ("started", 0, {"x": 1, "lr": {"name": "cosine", "initial": 0.1}}),
        ("measured", 0, {"step": 5, "accuracy": 0.1, "cost": 0.0, "utility": 0.1, "loss": 1.0}),
        ("measured", 0, {"step": 9, "accuracy": 0.2, "cost": 0.0, "utility": 0.2, "loss": 0.5}),
        ("ended", 0, "finished", ""),
    ]
    assert notes.told[-2:] == [("ended", 5, "failed", "ValueError: three"), ("closed",)]


def test_a_search_that_goes_on_tells_only_what_is_new(tmp_path: Path) -> None:
    first, second = Notes(), Notes()
    run(tmp_path / "s", trackers=[first])
    run(tmp_path / "s", trackers=[second])
    assert second.told == [("closed",)]


def test_a_broken_tracker_does_not_end_the_search(caplog: pytest.LogCaptureFixture) -> None:
    broken, whole = Notes(breaks_at=3), Notes()
    run(trackers=[broken, whole])
    assert len(broken.told) == 3
    assert whole.told[-1] == ("closed",)
    (message,) = [r.message for r in caplog.records if "not called again" in r.message]
    assert "the tracker Notes is not called again" in message
    assert "the server is away" in message


def events_of(directory: Path) -> list[Event]:
    """Read the event files of TensorBoard: length, checksum, an event, checksum."""
    found = []
    for path in directory.glob("events.out.*"):
        content, place = path.read_bytes(), 0
        while place < len(content):
            size = int.from_bytes(content[place : place + 8], "little")
            found.append(Event.FromString(content[place + 12 : place + 12 + size]))
            place += 12 + size + 4
    return found


def test_tensorboard_has_each_trial_with_its_settings(tmp_path: Path) -> None:
    run(tmp_path / "s", trackers=["tensorboard"])
    place = tmp_path / "s" / "tensorboard"
    assert {path.name for path in place.iterdir()} == {f"trial-0000{n}" for n in range(6)}
    values = [(e.step, v) for e in events_of(place / "trial-00002") for v in e.summary.value]
    loss = [(step, value.simple_value) for step, value in values if value.tag == "loss"]
    assert loss == [(5, 1.0), (9, 0.5)]
    tags = {value.tag for _, value in values}
    assert {"accuracy", "cost", "utility"} <= tags
    assert any("hparams" in tag for tag in tags)
    failed = [v for e in events_of(place / "trial-00005") for v in e.summary.value]
    assert any("ValueError: three" in str(value) for value in failed)


def test_mlflow_has_each_trial_with_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path}/mlflow"
    tracker = {"name": "mlflow", "experiment": "sizes", "tracking_uri": uri}
    run(trackers=[tracker])
    client = tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("sizes")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {f"trial {n}" for n in range(6)}
    assert runs["trial 1"].data.params == {"x": "1", "lr.name": "cosine", "lr.initial": "0.2"}
    history = client.get_metric_history(runs["trial 1"].info.run_id, "loss")
    assert sorted((one.step, one.value) for one in history) == [(5, 1.0), (9, 0.5)]
    assert runs["trial 1"].info.status == "FINISHED"
    assert runs["trial 5"].info.status == "FAILED"
    assert runs["trial 5"].data.tags["error"] == "ValueError: three"


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("tensorbord", r"no tracker 'tensorbord'.* Did you mean 'tensorboard'\?"),
        ("tensorboard", "tensorboard needs a directory; give {name: tensorboard, directory"),
        ({"name": "mlflow", "experimnt": "x"}, "experimnt"),
        (
            "tests.cluster.test_search_tracking:no_tracker",
            "needs the methods started, measured",
        ),
    ],
)
def test_what_is_no_tracker_is_refused_before_any_trial(tracker: Any, message: str) -> None:
    with pytest.raises(DynoptError, match=message):
        search(_never, SPACE, searcher="grid", local=True, trackers=[tracker])


def test_objects_are_taken_as_they_are() -> None:
    notes = Notes()
    assert isinstance(notes, Tracker)
    assert make_trackers([notes], directory=None) == [notes]
    with pytest.raises(SpecError, match="a tracker is given by name"):
        make_trackers([object()], directory=None)  # type: ignore[list-item]


def no_tracker(*, directory: Any) -> str:
    return f"a text for {directory}"


def record(kind: str, at: float, trial: int, **fields: Any) -> RunRecord:
    return RunRecord(kind, {"at": at, "trial": trial, **fields})


def test_slots_are_busy_while_a_trial_runs_there() -> None:
    records = [
        record("started", 100, 0, where="a (process 1)"),
        record("started", 100, 1, where="b (process 1)"),
        record("started", 102, 2, where="a (process 2)"),
        record("started", 102, 3, where="a (process 2)"),  # they share a slot
        record("measured", 103, 2, decision="continue"),
        record("ended", 104, 2),
        record("lost", 105, 1),
        record("measured", 106, 3, decision="pause"),
        record("ended", 110, 0),
    ]
    use = slot_use(records)
    assert use.to_numpy().tolist() == [
        [0, "a", 1],
        [0, "b", 1],
        [2, "a", 2],
        [5, "b", 0],
        [6, "a", 1],
        [10, "a", 0],
    ]
    # Of 3 slots, 2 are busy for 2 s, 3 for 3 s, 2 for 1 s and 1 for 4 s.
    assert busy_share(use) == pytest.approx((2 * 2 + 3 * 3 + 2 * 1 + 1 * 4) / 30)


def test_a_driver_that_died_leaves_no_slot_busy() -> None:
    records = [
        record("started", 100, 0, where="a (process 1)"),
        RunRecord("continued", {"at": 200}),
        record("started", 201, 0, where="a (process 9)"),
        record("ended", 203, 0),
    ]
    assert slot_use(records)["seconds"].tolist() == [0, 100, 101, 103]


def test_without_trials_no_slot_was_busy() -> None:
    assert slot_use([]).empty
    assert busy_share(slot_use([])) is None


def test_records_of_a_search_have_their_times(tmp_path: Path) -> None:
    run(tmp_path / "s")
    records = read_journal(lines_at(str(tmp_path / "s")))
    times = [r["at"] for r in records if r.kind in ("drawn", "started", "measured", "ended")]
    assert times == sorted(times)
    use = slot_use(records)
    assert use["busy"].isin([0, 1]).all()
    assert isinstance(use, pd.DataFrame)


def _never(config: Any) -> Any:
    raise AssertionError(f"a trial runs: {config}")
