"""Searches on Ray give the same results as searches in this process."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch

from dynopt_ray.cluster import session
from dynopt_ray.cluster.searching.driver import search
from dynopt_ray.cluster.searching.log import TrialLog
from dynopt_ray.cluster.trials import Measurement
from dynopt_ray.errors import ClusterError

pytestmark = pytest.mark.ray

SPACE: dict[str, Any] = {"x": {"low": 0.0, "high": 1.0}, "mode": ["fine", "nan"]}


class Hill:
    """A trial with 8 MB of data, which must not be sent with every trial."""

    def __init__(self) -> None:
        self.data = np.ones(1_000_000)

    def __call__(self, config: Mapping[str, Any]) -> Iterator[Measurement]:
        x = config["x"]
        for step in range(1, 6):
            lost = config["mode"] == "nan" and step == 2
            yield Measurement(
                step=step,
                accuracy=float("nan") if lost else 1 - (x - 0.3) ** 2 - 0.1 / step,
                cost=0.5,
                final=step == 5,
                details={"threads": torch.get_num_threads(), "sum": float(self.data.sum())},
                network=lambda: f"{x}".encode(),
            )


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with session(num_cpus=2):
        yield


@pytest.mark.usefixtures("cluster")
def test_trials_in_workers_give_the_same_tables_as_in_this_process() -> None:
    there = search(Hill(), SPACE, num_trials=12, searcher="random")
    here = search(Hill(), SPACE, num_trials=12, searcher="random", local=True)
    pd.testing.assert_frame_equal(there.trials, here.trials, check_exact=True)
    assert there.network == here.network == f"{there.best.config['x']}".encode()
    failed = there.trials[there.trials["status"] == "failed"]
    assert 0 < len(failed) < 12
    assert set(failed["error"]) == {"DivergedError: the accuracy is nan at step 2"}
    assert set(there.trials["threads"]) == {1}


@pytest.mark.usefixtures("cluster")
def test_asha_and_optuna_on_ray() -> None:
    ended: list[TrialLog] = []
    lock = threading.RLock()  # live progress has one too; it must not be pickled

    def on_end(log: TrialLog) -> None:
        with lock:
            ended.append(log)

    result = search(
        Hill(),
        {"x": SPACE["x"], "mode": "fine"},
        num_trials=16,
        searcher="optuna",
        scheduler="asha",
        num_reports=5,
        on_end=on_end,
    )
    assert len(ended) == 16
    status = result.trials["status"].value_counts()
    assert status["stopped"] >= 4
    assert status["finished"] >= 1
    assert abs(result.best.config["x"] - 0.3) < 0.2
    assert ray.is_initialized()  # the session around the search still runs


@pytest.mark.usefixtures("cluster")
def test_a_trial_that_fits_on_no_node_is_refused_at_once() -> None:
    with pytest.raises(ClusterError, match=r"^one task needs 1 CPUs and 1 GPUs, but no node has"):
        search(Hill(), SPACE, num_trials=2, searcher="random", gpus_per_trial=1)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("num_trials", [None, 3, 9])
def test_a_grid_on_ray_tries_all_once(num_trials: int | None) -> None:
    space = {"x": [0.1, 0.2, 0.3, 0.4], "mode": "fine"}
    result = search(Hill(), space, num_trials=num_trials, searcher="grid")
    assert result.trials["config.x"].tolist() == [0.1, 0.2, 0.3, 0.4][:num_trials]
