"""Packs on a cluster: their processes are killed, and their size is measured there."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from dynopt_ray.cluster import PruneTrial, SearchResult, search, session
from dynopt_ray.journals import lines_at, read_journal
from tests.cluster.packed import DyingPacks, OfPoint, digits, trained
from tests.cluster.slots import SPACE

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def trial() -> PruneTrial:
    task = digits()
    return PruneTrial(task, trained(task), retrain_steps=16, num_reports=4)


@pytest.fixture(scope="module")
def alone(trial: PruneTrial) -> SearchResult:
    return search(OfPoint(trial), SPACE, num_trials=12, searcher="random", pack=1, local=True)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with session(num_cpus=2):
        yield


def assert_same(one: SearchResult, other: SearchResult) -> None:
    pd.testing.assert_frame_equal(one.trials, other.trials, check_exact=True)
    ours, theirs = (
        found.history.sort_values(["trial", "step"], ignore_index=True) for found in (one, other)
    )
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert one.network == other.network


def test_killed_packs_change_no_figure(
    trial: PruneTrial, alone: SearchResult, tmp_path: Path
) -> None:
    """Every member goes on from its own state."""
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    result = search(
        DyingPacks(trial, deaths),
        SPACE,
        num_trials=12,
        searcher="random",
        pack=4,
        max_concurrent=2,
        storage=tmp_path / "run",
    )
    assert len([*deaths.iterdir()]) == 2
    assert_same(result, alone)
    records = read_journal(lines_at(str(tmp_path / "run")))
    lost = Counter(record["trial"] for record in records if record.kind == "lost")
    assert 5 <= sum(lost.values()) <= 8  # the members of two packs
    assert all("died" in record["cause"] for record in records if record.kind == "lost")


def test_the_size_of_packs_is_measured_where_trials_run(
    trial: PruneTrial, alone: SearchResult
) -> None:
    result = search(
        OfPoint(trial), SPACE, num_trials=12, searcher="random", pack="auto", max_concurrent=2
    )
    assert re.match(r"packs of [146] trials \(steps per second of packs of 1: ", result.note)
    assert_same(result, alone)
