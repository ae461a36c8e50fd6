"""A run of a search is ended at random moments, continued each time, and ends with its table."""

import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.ending import end_after
from tests.cli.test_cli_process import alive, dynopt, started

pytestmark = pytest.mark.ray

SPEC = """
kind: search
num_threads: 1
task: {name: digits-mlp, hidden: [16]}
train: {num_steps: 300, lr: 3e-3}
search: {num_trials: 8, retrain_steps: 1_500, num_reports: 5, searcher: random, max_concurrent: 2}
space: {remove_fraction: {low: 0.1, high: 0.5}}
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "s.yaml").write_text(SPEC)
    done = dynopt("run", "s.yaml", "--out", "run", "--set", "search.local=true", cwd=folder)
    assert done.returncode == 0, done.stderr
    return pd.read_csv(folder / "run" / "results.csv")


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_a_run_that_is_ended_again_and_again_ends_with_its_table(
    seed: int, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(SPEC)
    moments, run = random.Random(seed), tmp_path / "run"
    arguments = ["run", "s.yaml", "--out", "run"]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        process = started(*arguments, cwd=tmp_path)
        try:
            below = end_after(process, number, moments.uniform(1, 20), run)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        codes = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
        # The run may have ended before the signal came.
        assert process.returncode in (0, codes[number]), errors
        assert "Traceback" not in output + errors
        # Ray's agents report the death of their node to its head, and give up after a minute.
        deadline = time.monotonic() + 180
        while (left := alive(below)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == []
        assert (run / "journal.jsonl").exists()
        reported = dynopt("report", "run", cwd=tmp_path)
        assert reported.returncode == 0, reported.stderr
        arguments = ["resume", "run"]
    resumed = dynopt(*arguments, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    pd.testing.assert_frame_equal(pd.read_csv(run / "results.csv"), undisturbed, check_exact=True)
