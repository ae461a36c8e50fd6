"""Runs submitted to a head with a token: they run, are watched, stopped and continued."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.heads import Head, running_head

SEARCH = """
kind: search
num_threads: 1
task: {name: "my_tasks:task", width: 16}
train: {num_steps: 30, lr: 3e-3}
search: {num_trials: 2, searcher: random, scheduler: null, retrain_steps: 20, num_reports: 2}
space: {remove_fraction: {low: 0.1, high: 0.6}}
"""
# The module is found in the working directory, which is sent along.
TASK = """
from dynopt_ray.tasks import load_task
def task(width): return load_task("digits-mlp", {"hidden": [width]})
"""


@dataclass(frozen=True)
class Submitter:
    """Somebody with a working directory, perhaps with the token of the cluster."""

    directory: Path
    head: Head

    def dynopt(self, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        environment = {**self.head.environment, "COLUMNS": "200", **more}
        return subprocess.run(
            [sys.executable, "-c", "from dynopt_ray.cli import main; main()", *arguments],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def submitter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitter]:
    directory = tmp_path_factory.mktemp("work")
    (directory / "s.yaml").write_text(SEARCH)
    (directory / "my_tasks.py").write_text(TASK)
    with running_head(tmp_path_factory.mktemp("home")) as head:
        yield Submitter(directory, head)


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_run_runs_shows_its_output_and_is_found_again(
    submitter: Submitter, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    at = ("--address", submitter.head.dashboard)
    done = submitter.dynopt("submit", "s.yaml", *at, "--out", str(out), "--set", "seed=5")
    assert done.returncode == 0, done.stdout + done.stderr
    name = done.stdout.splitlines()[0].removeprefix("job: ")
    assert "search (" in done.stdout
    assert "2 finished" in done.stdout
    assert done.stdout.splitlines()[-1] == f"{name}: succeeded"
    assert "seed: 5" in (out / "spec.yaml").read_text()
    assert (out / "report.html").is_file()

    assert name in submitter.dynopt("status", *at).stdout
    found = submitter.dynopt("status", name, *at)
    assert found.stdout.startswith(f"{name}: succeeded\ndynopt run s.yaml --set seed=5 --out ")
    assert f"report: {out}/report.html" in found.stdout
    ended = submitter.dynopt("stop", name, *at)
    assert ended.stdout == f"{name} has ended already: succeeded\n"


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_run_keeps_what_it_found_and_is_continued(
    submitter: Submitter, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    at = ("--address", submitter.head.dashboard)
    many = ("--set", "search.num_trials=1000")
    begun = submitter.dynopt("submit", "s.yaml", *at, "--out", str(out), *many, "--no-wait")
    assert begun.returncode == 0, begun.stderr
    name = begun.stdout.splitlines()[0].removeprefix("job: ")
    deadline = time.monotonic() + 90
    while not _finished_trials(out):
        assert time.monotonic() < deadline, submitter.dynopt("status", name, *at).stdout
        time.sleep(0.3)
    stopped = submitter.dynopt("stop", name, *at)
    assert stopped.stdout.startswith(f"{name}: stopped")
    assert '"status": "interrupted"' in (out / "manifest.json").read_text()

    fewer = ("--set", f"search.num_trials={_finished_trials(out) + 1}", "--resume")
    continued = submitter.dynopt("submit", "s.yaml", *at, "--out", str(out), *fewer)
    assert continued.returncode == 0, continued.stdout + continued.stderr
    assert '"status": "finished"' in (out / "manifest.json").read_text()


def _finished_trials(out: Path) -> int:
    journal = out / "journal.jsonl"
    return journal.read_text().count('"finished"') if journal.exists() else 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("token", ["", "0" * 64], ids=["none", "wrong"])
def test_without_the_token_nothing_is_submitted_shown_or_stopped(
    token: str, submitter: Submitter, tmp_path: Path
) -> None:
    at = ("--address", submitter.head.dashboard)
    stranger = {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    if not token:
        del stranger["RAY_AUTH_MODE"]
    for command in (("submit", "s.yaml", "--out", str(tmp_path / "x")), ("status",), ("stop", "a")):
        begun = time.monotonic()
        done = submitter.dynopt(*command, *at, **stranger)
        assert done.returncode == 2
        assert "refuses this token, or asks for one" in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - begun < 10 + _slowness()
    assert not (tmp_path / "x").exists()


def _slowness() -> float:
    """Seconds by which a machine with more to do than it has cores may be late."""
    return 5 * max(0.0, os.getloadavg()[0] / (os.cpu_count() or 1) - 1)


@pytest.mark.ray
@pytest.mark.slow
def test_what_cannot_be_submitted_is_refused_before_it_is_sent(
    submitter: Submitter, tmp_path: Path
) -> None:
    at = ("--address", submitter.head.dashboard)
    elsewhere = tmp_path / "s.yaml"
    elsewhere.write_text(SEARCH)
    for arguments, message in [
        (("submit", "s.yaml", "--set", "sed=1"), "sed: unknown key"),
        (("submit", "serch"), "Did you mean 'search'?"),
        (("submit", str(elsewhere)), "is not in the working directory"),
        (("submit", "s.yaml", "--ship", "none.whl"), "there is no such file or directory"),
        (("submit", "s.yaml", "--resume"), "give the directory of the run to continue"),
        (("status", f"no-{secrets.token_hex(4)}"), "does not exist"),
    ]:
        done = submitter.dynopt(*arguments, *at)
        assert done.returncode == 2
        assert message in done.stderr
