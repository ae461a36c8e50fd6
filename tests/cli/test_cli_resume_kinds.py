"""A run of each kind is ended at a random moment, continued, and ends with its tables."""

import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.ending import end_after
from tests.cli.test_cli_process import alive, dynopt, started

TRAIN = """
num_threads: 1
task: {name: digits-mlp, hidden: [16]}
train: {num_steps: 300, lr: 3e-3}
"""

SPECS = {
    "prune": TRAIN
    + """
kind: prune
prune:
  target: {remove: 0.5}
  rounds: 3
  retrain: {num_steps: 1_500, lr: 3e-3}
""",
    "adapt": TRAIN
    + """
kind: adapt
policy: data_sized_widths
adapt: {horizon: 8, train_steps: 300}
""",
    "stream here": TRAIN
    + """
kind: stream
stream: {num_events: 4_000, drifts: [{at: 1_000, kind: rotation}]}
learner: {snapshot_every: 300, local: true, reactions: [raise_rate, replay]}
""",
    "stream": TRAIN
    + """
kind: stream
stream: {num_events: 4_000, drifts: [{at: 1_000, kind: rotation}]}
learner: {snapshot_every: 300}
""",
    "policy": """
kind: policy
num_threads: 1
env: {task: digits-mlp, horizon: 8, train_steps: 5}
policy: {num_steps: 3_000, num_envs: 8, save_every_steps: 400, hidden: [16], warmup_steps: 200}
num_episodes: 4
""",
}

WITH_RAY = {"stream", "policy"}
VARYING = ("duration_s", "latency_ms")


def tables(run: Path) -> dict[str, pd.DataFrame]:
    """Return all tables of a run, without columns that hold times."""
    paths = [run / "results.csv", *(run / "tables").glob("*.csv")]
    frames = {path.name: pd.read_csv(path) for path in paths}
    return {
        name: frame[[column for column in frame if column not in VARYING]]
        for name, frame in frames.items()
    }


ENDS = [*((kind, "SIGKILL") for kind in SPECS), ("policy", "SIGINT"), ("policy", "SIGTERM")]


@pytest.mark.parametrize(
    ("kind", "signal_name"),
    [
        pytest.param(*end, marks=[pytest.mark.ray if end[0] in WITH_RAY else pytest.mark.slow])
        for end in ENDS
    ],
)
def test_a_run_that_was_ended_and_continued_has_all_its_tables(
    kind: str, signal_name: str, tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(SPECS[kind])
    begun = time.monotonic()
    done = dynopt("run", "s.yaml", "--out", "undisturbed", cwd=tmp_path)
    duration_s = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    expected = tables(tmp_path / "undisturbed")

    process = started("run", "s.yaml", "--out", "run", cwd=tmp_path)
    moment = random.Random(f"{kind} {signal_name}").uniform(0.1, 0.8) * duration_s
    number = signal.Signals[signal_name]
    try:
        below = end_after(process, number, moment, tmp_path / "run")
        process.communicate(timeout=60)
    finally:
        process.kill()
    resumed = dynopt("resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert tables(tmp_path / "run").keys() == expected.keys()
    for name, frame in tables(tmp_path / "run").items():
        pd.testing.assert_frame_equal(frame, expected[name], obj=name, check_exact=True)
    assert process.returncode in (0, -number, 128 + number)
    # Ray's agents report the death of their node to its head, and give up after a minute.
    deadline = time.monotonic() + 180
    while (left := alive(below)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
