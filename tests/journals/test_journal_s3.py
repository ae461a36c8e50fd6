"""Searches and journals on an object store that speaks S3."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dynopt_ray.cluster import Measurement, search
from dynopt_ray.cluster.trials import TrialFiles
from dynopt_ray.errors import CheckpointError, DynoptError, RunError
from dynopt_ray.journals import RunJournal, lines_at, read_journal, store_at
from tests.journals.s3_server import S3Server, s3_server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SPACE = {"x": {"low": 0.0, "high": 1.0}, "kind": ["a", "b"]}


@pytest.fixture(scope="module")
def shared() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def uri(shared: S3Server, request: pytest.FixtureRequest) -> str:
    return shared.uri(shared.bucket(f"bucket-{abs(hash(request.node.name))}"))


def steps(config: Any, state: Any = None, wait_s: float = 0.0) -> Iterator[Measurement]:
    total = 0.0 if state is None else state["total"]
    for step in range(1 if state is None else state["step"] + 1, 5):
        time.sleep(wait_s)
        total += config["x"]
        reached = {"step": step, "total": total}
        yield Measurement(
            step,
            accuracy=total / 4,
            cost=float(config["kind"] == "a"),
            final=step == 4,
            state=lambda reached=reached: reached,  # type: ignore[misc]
            network=lambda total=total: repr(total).encode(),  # type: ignore[misc]
        )


def slow_steps(config: Any, state: Any = None) -> Iterator[Measurement]:
    yield from steps(config, state, wait_s=0.1)


def searched(storage: str | Path, trial: Any = steps) -> pd.DataFrame:
    result = search(
        trial, SPACE, num_trials=8, num_reports=4, scheduler="asha", storage=storage, local=True
    )
    assert result.network is not None
    return result.trials


def test_a_search_on_s3_is_that_on_a_disk(uri: str, tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(searched(uri), searched(tmp_path / "disk"), check_exact=True)
    left = "trials/00003/state-00002.safetensors"
    store_at(uri).put(left, b"left by a driver that died")
    again = searched(uri)  # everything else is there already
    assert left not in store_at(uri).names_below("trials")
    pd.testing.assert_frame_equal(again, searched(tmp_path / "disk"), check_exact=True)
    files = TrialFiles(store_at(uri))
    assert any(files.network(number) for number in range(8))
    assert store_at(uri).names("probes") == frozenset()


def test_a_driver_that_is_killed_loses_nothing_on_s3(uri: str, tmp_path: Path) -> None:
    code = (
        "import sys; from tests.journals import test_journal_s3 as t; "
        "t.searched(sys.argv[1], t.slow_steps)"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    driver = subprocess.Popen(
        [sys.executable, "-c", code, uri], env={**os.environ, "PYTHONPATH": path}, cwd=ROOT
    )
    deadline = time.monotonic() + 120
    try:
        while sum(record.kind == "measured" for record in read_journal(lines_at(uri))) < 9:
            assert time.monotonic() < deadline, "the search does not begin"
            assert driver.poll() is None, "the search has ended"
            time.sleep(0.1)
        with pytest.raises(RunError, match=r"\(process \d+\) is writing to s3://"):
            searched(uri, slow_steps)
        driver.send_signal(signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()
    found = searched(uri, slow_steps)
    pd.testing.assert_frame_equal(found, searched(tmp_path / "disk", slow_steps), check_exact=True)
    records = read_journal(lines_at(uri))
    assert sum(record.kind == "continued" for record in records) == 1
    assert sum(record.kind == "drawn" for record in records) == 8


def test_a_lost_segment_on_s3_is_damage(uri: str) -> None:
    with RunJournal(lines_at(uri), sync_every_s=0) as journal:
        for number in range(3):
            journal.append("one", number=number)
    store = store_at(uri)
    store.delete(sorted(store.names("journal"))[1])
    with pytest.raises(RunError, match="is damaged in line 2"):
        read_journal(lines_at(uri))


def test_the_lock_of_another_machine_holds_until_its_heartbeat_stops(uri: str) -> None:
    held: dict[str, Any] = {"owner": "x", "host": "elsewhere", "pid": 1, "beat": time.time()}
    store_at(uri).put("journal/lock.json", json.dumps(held).encode())
    with pytest.raises(RunError, match=r"elsewhere \(process 1\) is writing"):
        RunJournal(lines_at(uri))
    held["beat"] -= 61
    store_at(uri).put("journal/lock.json", json.dumps(held).encode())
    with RunJournal(lines_at(uri)) as journal:
        journal.append("taken over")
    assert store_at(uri).names("journal") == {"journal/000000000000.jsonl"}


def test_a_store_that_cannot_be_reached_is_refused_before_any_trial() -> None:
    with s3_server() as server:
        uri = server.uri(server.bucket("gone"))
        journal = RunJournal(lines_at(uri))
        server.pause()
        journal.append("one")
        for end in (journal.sync, journal.close):
            with pytest.raises(RunError, match="cannot write s3://gone"):
                end()
        begun = time.monotonic()
        for place in (uri, server.uri("s3://missing/run")):
            with pytest.raises(DynoptError, match="cannot read s3://"):
                search(_never, SPACE, num_trials=2, storage=place, local=True)
        assert time.monotonic() - begun < 90  # pyarrow tries again for some seconds


def test_a_missing_bucket_is_named(shared: S3Server) -> None:
    place = shared.uri("s3://no-such-bucket/run")
    with pytest.raises(DynoptError, match="no-such-bucket"):
        search(_never, SPACE, num_trials=2, storage=place, local=True)


@pytest.mark.parametrize("uri", ["s3://", "foo://x/y", "s3://b/run?nonsense=1", "file://"])
def test_what_is_no_place_is_refused(uri: str) -> None:
    with pytest.raises(CheckpointError, match="cannot open"):
        search(_never, SPACE, num_trials=2, storage=uri, local=True)


def _never(config: Any) -> Any:
    raise AssertionError(f"a trial runs: {config}")
