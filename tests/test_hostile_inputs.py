"""Hundreds of hostile inputs: each is taken or refused with one bounded message, in bounded time.

Each number is a seed from which an input is made. The first few of each kind run with every change
of the code, the others with the slow tests.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from dynopt_ray.cli import app
from dynopt_ray.errors import DynoptError, SpecError
from dynopt_ray.runs import check_spec, load_spec, packaged, prepare
from dynopt_ray.runs.spec import parse
from dynopt_ray.tasks import load_task
from tests.fuzz import changed_bytes, changed_data
from tests.tasks.test_task_hostile_tables import ARCHIVES, CSV

LONGEST_MESSAGE = 4_500
MOST_SECONDS = 60  # on a busy machine; nearly all take a tenth of a second

PREPARED = """
kind: prune
num_threads: 1
task: {name: digits-mlp, hidden: [16]}
train: {num_steps: 60, lr: {name: cosine, initial: 0.1}}
optimizer: {name: sgd, momentum: 0.9}
prune:
  target: {budget: {flops: 0.5}}
  criterion: taylor
  rounds: 2
  recovery: {name: greedy, share: 0.1}
  retrain: {num_steps: 5, lr: {name: step, initial: 0.1, gamma: 0.5, period_steps: 2}}
  schedule: {name: linear, initial: 0.0, final: 1.0}
  min_widths: {"0": 2}
"""

runner = CliRunner()


def seeds(number: int, fast: int) -> list[Any]:
    """Return seeds from 0, of which all but the first ones are for the slow tests."""
    slow = pytest.mark.slow
    return [seed if seed < fast else pytest.param(seed, marks=slow) for seed in range(number)]


def refused(call: Callable[[], object]) -> bool:
    """Return whether an input is refused; nothing but one of our own errors may come out."""
    start = time.perf_counter()
    message = ""
    try:
        call()
    except DynoptError as error:
        message = str(error)
        assert message
    assert len(message) < LONGEST_MESSAGE
    assert time.perf_counter() - start < MOST_SECONDS
    return bool(message)


def check_command(*arguments: str) -> int:
    """Run a command, check how it ends, and return its exit code."""
    result = runner.invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.exit_code in (0, 2)
    if result.exit_code:
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.stderr
        assert len(result.stderr) < LONGEST_MESSAGE
        assert "\x1b" not in result.stderr
    return result.exit_code


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("seed", seeds(80, 8))
def test_texts_of_specs(seed: int) -> None:
    names = sorted(packaged())
    content = packaged()[names[seed % len(names)]].read_bytes()
    Path("s.yaml").write_bytes(changed_bytes(content, seed))
    if refused(lambda: load_spec("s.yaml")):
        assert check_command("run", "s.yaml", "--out", "run") == 2
    assert not Path("run").exists()


@pytest.mark.parametrize("seed", seeds(80, 8))
def test_values_of_specs(seed: int) -> None:
    names = sorted(packaged())
    text = packaged()[names[seed % len(names)]].read_text("utf-8")
    data = changed_data(parse(text, source="the packaged spec"), seed)
    refused(lambda: check_spec(data, source="the spec"))


@pytest.mark.parametrize("seed", seeds(60, 6))
def test_what_passes_as_a_spec_can_be_prepared_or_is_refused(seed: int) -> None:
    data = changed_data(parse(PREPARED, source="the spec"), 1_000 + seed)
    with suppress(SpecError):
        spec = check_spec(data, source="the spec")
        refused(lambda: prepare(spec))


@pytest.mark.parametrize("seed", seeds(40, 6))
def test_overrides(seed: int) -> None:
    override = changed_bytes(b"prune.retrain.lr={name: cosine, initial: 1e-2}", seed)
    text = override.decode("utf-8", "replace").replace("\0", " ")
    refused(lambda: load_spec("prune", [text]))


def tables() -> dict[str, bytes]:
    """Return the same table in files of each format."""
    frame = pd.read_csv(BytesIO(CSV.encode())).assign(t=["one", "two", "three"] * 20)
    parquet = BytesIO()
    frame.to_parquet(parquet)
    text = frame.to_csv(index=False)
    archives = {name: make(text) for name, make in ARCHIVES.items() if name != "t.csv.zst"}
    return {"t.csv": text.encode(), "t.parquet": parquet.getvalue(), **archives}


@pytest.mark.filterwarnings("default")  # pandas warns about columns of mixed types
@pytest.mark.parametrize("seed", seeds(120, 12))
def test_tables_and_archives(seed: int) -> None:
    whole = tables()
    name = sorted(whole)[seed % len(whole)]
    Path(name).write_bytes(changed_bytes(whole[name], seed))
    refused(lambda: load_task("tabular", {"path": name, "target": "y"}))


MANIFEST = {
    "spec": "mine",
    "kind": "prune",
    "seed": 7,
    "status": "finished",
    "started": "2026-11-30T19:00:00.000+00:00",
    "duration_s": 12.5,
    "versions": {"python": "3.11", "torch": "2.8"},
    "hardware": {"cpus": 2, "gpus": []},
    "commit": {"hash": "0" * 40, "changed_files": False},
    "error": "none",
}
RESULTS = "trial,status,utility,note\n0,finished,0.5,a\n1,failed,,b\n2,finished,0.7,$x$\n"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("seed", seeds(80, 8))
def test_run_directories(seed: int) -> None:
    parts = {
        "manifest.json": json.dumps(MANIFEST, indent=2).encode(),
        "spec.yaml": PREPARED.encode(),
        "results.csv": RESULTS.encode(),
        "tables/summary.csv": b"network,accuracy\nbefore,0.9\nafter,0.8\n",
    }
    name = sorted(parts)[seed % len(parts)]
    if name == "manifest.json" and seed % 8 < 4:
        text = json.dumps(changed_data(MANIFEST, seed))
        parts[name] = text.encode()
    else:
        parts[name] = changed_bytes(parts[name], seed)
    for run in ("one", "two"):
        Path(run, "tables").mkdir(parents=True)
        for part, content in parts.items():
            Path(run, part).write_bytes(content)
    code = check_command("report", "one")
    assert Path("one/report.html").exists() == (code == 0)
    code = check_command("report", "one", "two", "--out", "both.html")
    assert Path("both.html").exists() == (code == 0)
