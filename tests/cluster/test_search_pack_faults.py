"""Processes of packs are killed, and every member goes on from its own state."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from dynopt_ray.cluster import PruneTrial, search, session
from dynopt_ray.journals import lines_at, read_journal
from tests.cluster.packed import DyingPacks, OfPoint, digits, trained
from tests.cluster.slots import SPACE

pytestmark = pytest.mark.ray


def test_killed_packs_change_no_figure(tmp_path: Path) -> None:
    task = digits()
    trial = PruneTrial(task, trained(task), retrain_steps=16, num_reports=4)
    alone = search(OfPoint(trial), SPACE, num_trials=12, searcher="random", pack=1, local=True)
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    with session(num_cpus=2):
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
    pd.testing.assert_frame_equal(result.trials, alone.trials, check_exact=True)
    ours, theirs = (
        found.history.sort_values(["trial", "step"], ignore_index=True) for found in (result, alone)
    )
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert result.network == alone.network
    records = read_journal(lines_at(str(tmp_path / "run")))
    lost = Counter(record["trial"] for record in records if record.kind == "lost")
    assert 5 <= sum(lost.values()) <= 8  # the members of two packs
    assert all("died" in record["cause"] for record in records if record.kind == "lost")
