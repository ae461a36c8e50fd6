"""Processes and nodes are killed while a search runs, and its tables stay as they were."""

import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dynopt_ray.cluster import Measurement, SearchResult, TrialLog, search, session
from dynopt_ray.cluster.searching.storage import opened
from dynopt_ray.errors import RunError, SearchError
from dynopt_ray.journals import RunRecord, lines_at, read_journal
from tests.cluster.dying import SPACE, Dying, Place
from tests.cluster.nodes import Nodes, pid_of, running_nodes

pytestmark = pytest.mark.ray

PLACES: tuple[Place, ...] = ("load", "begin", "step", "report", "state", "network")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with running_nodes(2) as nodes, session(nodes.address):
        yield nodes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    trial = Dying(tmp_path_factory.mktemp("undisturbed"), step_s=0)
    return search(trial, SPACE, num_trials=12, searcher="random", local=True)


def records_of(storage: Path) -> list[RunRecord]:
    return list(read_journal(lines_at(str(storage))))


@pytest.mark.usefixtures("nodes")
def test_killed_processes_change_no_figure(undisturbed: SearchResult, tmp_path: Path) -> None:
    trial = Dying(tmp_path, at=PLACES)
    result = search(
        trial,
        SPACE,
        num_trials=12,
        searcher="random",
        gpus_per_trial=0.5,
        max_concurrent=3,
        max_failures=6,
        storage=tmp_path / "run",
    )
    assert trial.deaths() == len(PLACES)
    pd.testing.assert_frame_equal(result.trials, undisturbed.trials, check_exact=True)
    pd.testing.assert_frame_equal(result.history, undisturbed.history, check_exact=True)
    assert result.network == undisturbed.network
    records = records_of(tmp_path / "run")
    losses = [r["cause"] for r in records if r.kind == "lost"]
    assert len(losses) == len(PLACES) - 2  # "load" loses no trial, and "network" has its figures
    assert all("died" in cause for cause in losses)
    # A process that was killed repeats the step that it had not reported, and no other.
    assert len(set(trial.steps())) == 12 * 4
    assert len(trial.steps()) <= 12 * 4 + len(PLACES)


def test_killed_nodes_change_no_figure(
    nodes: Nodes, undisturbed: SearchResult, tmp_path: Path
) -> None:
    """Nodes die while trials start, run, report and store their states, and are replaced."""
    trial = Dying(tmp_path, at=("load", "step", "report", "state"), whole_node=True, step_s=0.2)
    with nodes.replaced():
        result = search(
            trial,
            SPACE,
            num_trials=12,
            searcher="random",
            gpus_per_trial=0.5,
            max_failures=8,
            storage=tmp_path / "run",
        )
    assert trial.deaths() == 4
    pd.testing.assert_frame_equal(result.trials, undisturbed.trials, check_exact=True)
    assert result.network == undisturbed.network


class Uneven:
    """A trial of which some configurations hang, raise, measure NaN, or are slow."""

    def __call__(self, config: Mapping[str, Any]) -> Iterator[Measurement]:
        kind = config["kind"]
        for step in range(1, 5):
            if step == 2 and kind == "hangs":
                time.sleep(1000)
            if step == 2 and kind == "raises":
                raise ValueError("no such layer")
            if step == 2 and kind == "exits":
                os._exit(3)
            time.sleep(1.0 if kind == "slow" else 0.01)
            accuracy = math.nan if step == 2 and kind == "nan" else step / 4
            yield Measurement(step, accuracy, 0.0, final=step == 4)


@pytest.mark.usefixtures("nodes")
def test_a_trial_over_its_time_and_one_that_fails_end_alone() -> None:
    kinds = ["hangs", "slow", "fine", "raises", "nan", "exits", "fine too"]
    begun = time.monotonic()
    result = search(
        Uneven(),
        {"kind": kinds},
        searcher="grid",
        gpus_per_trial=0.5,
        time_limit_s=2,
        max_failures=1,
    )
    assert time.monotonic() - begun < 60
    limit = "the trial ran for longer than its limit of 2 s"
    trials = result.trials.set_index("config.kind")
    assert trials["status"].to_dict() == {
        **{"hangs": "stopped", "slow": "stopped", "fine": "finished", "raises": "failed"},
        **{"nan": "failed", "exits": "failed", "fine too": "finished"},
    }
    assert trials["error"][["hangs", "slow", "fine", "raises", "nan"]].tolist() == [
        *[limit, limit, "", "ValueError: no such layer"],
        "DivergedError: the accuracy is nan at step 2",
    ]
    assert trials["error"]["exits"].startswith("its process died 2 times; lastly: The actor died")
    assert trials["step"].to_dict() == {
        **{"hangs": 1, "slow": 1, "fine": 4, "raises": 1, "nan": 1, "exits": 1, "fine too": 4}
    }


class Together:
    """A trial that waits, but not for ever, until so many have begun, and notes its GPUs."""

    def __init__(self, folder: Path, num_expected: int) -> None:
        self.folder, self.num_expected = folder, num_expected

    def __call__(self, config: Mapping[str, Any]) -> Iterator[Measurement]:
        (self.folder / f"{config['x']}").touch()
        deadline, most = time.monotonic() + 60, 0
        while time.monotonic() < deadline and most < self.num_expected:
            most = max(most, len(list(self.folder.iterdir())))
            time.sleep(0.05)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        gpus = -1 if visible == "" else int(visible) if visible.isdigit() else 99
        yield Measurement(1, 1.0, 0.0, final=True, details={"most": most, "gpu": gpus})


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("gpus", "num_together", "on_gpus"),
    [(0.5, 8, {0: 2 * 2, 1: 2 * 2}), (0.6, 4, {0: 2, 1: 2}), (0, 8, {-1: 8})],
    ids=["halves", "three fifths", "none"],
)
def test_trials_share_gpus(
    gpus: float, num_together: int, on_gpus: Mapping[int, int], tmp_path: Path
) -> None:
    """Two nodes with two GPUs and four CPUs each."""
    result = search(
        Together(tmp_path, num_together),
        {"x": list(range(num_together))},
        searcher="grid",
        gpus_per_trial=gpus,
    )
    assert set(result.trials["most"]) == {num_together}
    assert result.trials["gpu"].value_counts().to_dict() == on_gpus


def test_a_second_driver_on_the_same_storage_is_refused(tmp_path: Path) -> None:
    space = {"x": [0.1, 0.2]}
    with opened(tmp_path), pytest.raises(RunError, match="another process is writing to"):
        search(lambda c: {"accuracy": c["x"]}, space, searcher="grid", storage=tmp_path, local=True)
    result = search(
        lambda c: {"accuracy": c["x"]}, space, searcher="grid", storage=tmp_path, local=True
    )
    assert result.best.accuracy == 0.2


@pytest.mark.usefixtures("nodes")
def test_processes_that_cannot_start_end_the_search_with_the_reason() -> None:
    class Refusing:
        def __init__(self) -> None:
            self.data = 1

        def __call__(self, config: Mapping[str, Any]) -> dict[str, float]:
            return {"accuracy": config["x"]}

        def __setstate__(self, state: Any) -> None:
            raise OSError("no data on this machine")

    with pytest.raises(SearchError, match=r"could not be started, 3 times in a row(.|\n)*no data"):
        search(Refusing(), {"x": [1, 2, 3, 4]}, searcher="grid", max_concurrent=2)


def test_a_node_that_joins_later_is_used(
    nodes: Nodes, undisturbed: SearchResult, tmp_path: Path
) -> None:
    trial, joining = Dying(tmp_path, step_s=0.5), threading.Event()
    nodes.add(resources={"late": 1})

    def join(_: TrialLog) -> None:
        joining.set()

    def join_when_told() -> None:
        if joining.wait(60):
            nodes.add(resources={"late": 1})

    thread = threading.Thread(target=join_when_told)
    thread.start()
    result = search(
        trial,
        SPACE,
        num_trials=12,
        searcher="random",
        resources={"late": 1},
        storage=tmp_path / "run",
        on_end=join,
    )
    thread.join()
    pd.testing.assert_frame_equal(result.trials, undisturbed.trials, check_exact=True)
    started = [r for r in records_of(tmp_path / "run") if r.kind == "started"]
    assert len({pid_of(record["where"]) for record in started}) == 2
