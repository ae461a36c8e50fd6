"""The driver of a search is killed with SIGKILL, again and again, and the search ends as if not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dynopt_ray.cluster import TrialLog, search
from dynopt_ray.cluster.trials import TrialFiles
from dynopt_ray.journals import LocalStore
from tests.cluster.drivers import records_of, run_killed
from tests.cluster.dying import SPACE, Dying, Place
from tests.cluster.nodes import Nodes, running_nodes

pytestmark = pytest.mark.ray

PLACES: tuple[Place, ...] = ("begin", "step", "state")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with running_nodes(2) as nodes:
        yield nodes


def table_of(storage: Path) -> pd.DataFrame:
    log = TrialLog()
    for record in records_of(storage):
        log.append(record.kind, **record.fields)
    return log.table()


CASES: dict[str, dict[str, Any]] = {
    "random": {"searcher": "random"},
    "optuna, drawn": {"searcher": "optuna", "order": "drawn"},
    "asha + optuna": {"searcher": "optuna", "scheduler": "asha", "order": "drawn"},
    "hyperband + random": {"searcher": "random", "scheduler": "hyperband", "order": "drawn"},
    "pbt + random": {"searcher": "random", "scheduler": "pbt", "order": "drawn"},
    "median + optuna": {"searcher": "optuna", "scheduler": "median", "order": "drawn"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_search_whose_driver_and_processes_are_killed_ends_as_if_not(
    case: str, nodes: Nodes, tmp_path: Path
) -> None:
    settings = {
        **{"num_trials": 12, "num_reports": 4, "max_concurrent": 3, "gpus_per_trial": 0.5},
        **CASES[case],
    }
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    undisturbed = search(Dying(here, step_s=0), SPACE, storage=here / "run", local=True, **settings)
    killed = run_killed(
        there,
        {**settings, "address": nodes.address, "space": SPACE},
        kills=(3, 12),
        make="tests.cluster.dying:Dying",
        at=PLACES,
        step_s=0.2,
    )
    assert killed == 2
    assert Dying(there, at=PLACES).deaths() == len(PLACES)
    pd.testing.assert_frame_equal(table_of(there / "run"), undisturbed.trials, check_exact=True)
    networks = [TrialFiles(LocalStore(folder / "run")).network for folder in (here, there)]
    for number in range(12):
        assert networks[0](number) == networks[1](number)
    # Nothing is left of probes and states.
    left = {path.name for path in (there / "run").rglob("*") if path.is_file()}
    assert left <= {"journal.jsonl", "network.safetensors"}
    records = records_of(there / "run")
    ended = [record["trial"] for record in records if record.kind == "ended"]
    assert sorted(ended) == list(range(12))
