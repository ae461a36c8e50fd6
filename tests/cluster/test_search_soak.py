"""A small soak test; `python -m experiments.benchmarks cluster` has the large one."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from dynopt_ray.cluster import TrialLog, search
from tests.cluster.drivers import records_of
from tests.cluster.nodes import running_nodes
from tests.cluster.soak import SPACE, pruning, soak

pytestmark = pytest.mark.ray


def test_six_kills_during_24_pruning_trials_change_no_figure(tmp_path: Path) -> None:
    size = {"retrain_steps": 600, "num_reports": 6}
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    settings = {"num_trials": 24, "searcher": "random", "num_reports": 6}
    undisturbed = search(
        pruning(here, **size), SPACE, num_trials=24, searcher="random", num_reports=6, local=True
    )
    with running_nodes(2) as nodes:
        result = soak(
            there,
            nodes,
            {**settings, "gpus_per_trial": 0.5, "max_failures": 6},
            victims=("process", "driver", "process", "node", "process", "driver"),
            num_measurements=24 * 6,
            **size,
        )
    assert result.kills == {"process": 3, "driver": 2, "node": 1}
    assert result.num_replaced == 1
    log = TrialLog()
    records = records_of(there / "run")
    for record in records:
        log.append(record.kind, **record.fields)
    pd.testing.assert_frame_equal(log.table(), undisturbed.trials, check_exact=True)
    ended = Counter(record["trial"] for record in records if record.kind == "ended")
    assert ended == dict.fromkeys(range(24), 1)
    # Kills cost at most the steps since the last stored state, in every slot that was hit.
    needed = 24 * size["retrain_steps"]
    assert needed <= result.num_steps < 1.5 * needed
