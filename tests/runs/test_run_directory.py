"""Run directories: complete files, a correct manifest, and no overwritten run."""

import errno
import json
import logging
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from dynopt_ray.errors import BudgetError, RunError
from dynopt_ray.runs import manifest
from dynopt_ray.runs.directory import RunDirectory, default_path
from dynopt_ray.runs.progress import Silent
from dynopt_ray.runs.run import Run, carry_out, threads

ABOUT = {"spec": "mine", "kind": "prune", "seed": 7}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs" / "a", spec_text="kind: prune\n", about=ABOUT)


def test_a_new_run_is_running(directory: RunDirectory) -> None:
    content = directory.manifest
    assert {key: content[key] for key in ABOUT} == ABOUT
    assert content["status"] == "running"
    assert content["versions"]["torch"] == torch.__version__
    assert content["hardware"]["cpus"] >= 1
    assert content["started"].endswith("+00:00")
    assert directory.spec_text == "kind: prune\n"


def test_a_run_never_overwrites_another(directory: RunDirectory) -> None:
    with pytest.raises(RunError, match="another process is writing to"):
        RunDirectory.create(directory.path, spec_text="other", about=ABOUT)
    directory.write_results(pd.DataFrame({"a": [1]}))
    directory.close()
    with pytest.raises(RunError) as caught:
        RunDirectory.create(directory.path, spec_text="other", about=ABOUT)
    assert str(caught.value) == (
        f"{directory.path} has the results of a run, and a run never overwrites another; continue "
        f"it with `dynopt resume {directory.path}`, or choose another --out"
    )
    assert directory.spec_text == "kind: prune\n"


def test_a_journal_with_records_counts_as_results(directory: RunDirectory) -> None:
    directory.journal.append("part", name="train")
    directory.close()
    with pytest.raises(RunError, match="has the results of a run"):
        RunDirectory.create(directory.path, spec_text="other", about=ABOUT)


def test_a_directory_without_results_may_be_used_again(directory: RunDirectory) -> None:
    (directory.path / "log.txt").write_text("it failed at once")
    directory.finish("failed", error="told to")
    directory.close()
    again = RunDirectory.create(directory.path, spec_text="other", about=ABOUT)
    assert again.spec_text == "other"
    assert again.manifest["status"] == "running"
    assert not (directory.path / "log.txt").exists()


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"exists already and has other files in it, such as thesis"):
        RunDirectory.create(tmp_path, spec_text="other", about=ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_goes_on_says_so(directory: RunDirectory) -> None:
    directory.finish("interrupted")
    directory.reopen()
    content = directory.manifest
    assert content["status"] == "running"
    assert len(content["continued"]) == 1
    assert not {"ended", "duration_s"} & content.keys()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"^cannot make the run directory .*/file/run: "):
        RunDirectory.create(tmp_path / "file" / "run", spec_text="", about=ABOUT)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("x" * 300, "File name too long"), ("y/" * 2_500 + "z", "has too long a path")],
)
def test_a_path_that_is_too_long_is_refused_briefly(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(RunError, match=reason) as caught:
        RunDirectory.create(tmp_path / name, spec_text="", about=ABOUT)
    assert len(str(caught.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_filled_may_be_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write_text", full)
        with pytest.raises(RunError, match="No space left on device; choose another --out"):
            RunDirectory.create(tmp_path / "run", spec_text="", about=ABOUT)
    RunDirectory.create(tmp_path / "run", spec_text="", about=ABOUT).close()


def test_opening_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run directory: there is no such directory$"):
        RunDirectory.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is not a run directory: there is no manifest\.json in it"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize("text", ['a,b\n1,2,3\n4\n"', "\x00\xff"])
def test_a_damaged_table_is_named(directory: RunDirectory, text: str) -> None:
    (directory.path / "results.csv").write_text(text, "latin-1")
    with pytest.raises(RunError, match=r"results\.csv is damaged: ") as caught:
        directory.table("results")
    assert "\n" not in str(caught.value)


def test_an_empty_manifest_is_damaged(directory: RunDirectory) -> None:
    (directory.path / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="it has no 'kind'"):
        _ = directory.manifest


@pytest.mark.parametrize("wrong", [{"seed": None}, {"duration_s": "long"}])
def test_a_manifest_with_wrong_types_is_damaged(
    directory: RunDirectory, wrong: dict[str, Any]
) -> None:
    content = {**directory.manifest, **wrong}
    (directory.path / "manifest.json").write_text(json.dumps(content))
    (key,) = wrong
    with pytest.raises(RunError, match=rf"manifest\.json is damaged: its '{key}' is "):
        _ = directory.manifest


def test_a_damaged_manifest_is_named(directory: RunDirectory) -> None:
    (directory.path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json is damaged: "):
        _ = directory.manifest


def test_tables_come_back(directory: RunDirectory) -> None:
    frame = pd.DataFrame({"x": [1.5, 2.5], "name": ["a", "b"]})
    directory.write_results(frame)
    directory.write_table("curves", frame)
    for name in ("results", "curves"):
        read = directory.table(name)
        assert read is not None
        pd.testing.assert_frame_equal(read, frame)
    assert directory.table("nothing") is None
    directory.write_table("empty", pd.DataFrame())
    assert directory.table("empty") is None


def test_a_failed_write_leaves_the_old_file(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.write_text("results.csv", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, f"No space left on device ({descriptor})")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        directory.write_text("results.csv", "new")
    assert (directory.path / "results.csv").read_text() == "old"
    assert not list(directory.path.glob(".*"))


def test_names_by_time_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = set()
    for _ in range(3):
        path = default_path("demo")
        path.mkdir(parents=True)
        seen.add(path)
    assert len(seen) == 3
    assert all(path.parent == Path("runs") and path.name.startswith("demo-") for path in seen)


def test_the_commit_is_that_of_the_working_directory(tmp_path: Path) -> None:
    assert manifest.commit(tmp_path) is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    found = manifest.commit(tmp_path)
    assert found is not None
    assert len(found["hash"]) == 40
    assert found["changed_files"] is False


@pytest.mark.parametrize("where", [".", "below"])
def test_a_checkout_runs_no_program_of_its_own(tmp_path: Path, where: str) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    program.chmod(0o700)
    checkout = tmp_path / "checkout"
    (checkout / "below").mkdir(parents=True)
    (checkout / ".gitattributes").write_text("*.txt filter=own\n")
    (checkout / "a.txt").write_text("a")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    commands = [["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]]
    for setting in ("core.fsmonitor", "filter.own.clean", "filter.own.process"):
        commands.append(["config", setting, str(program)])
    for command in commands:
        subprocess.run(["git", *command], cwd=checkout, check=True)
    os.utime(checkout / "a.txt", (0, 0))  # git has to read the file to see that it is the same
    found = manifest.commit(checkout / where)
    assert found is not None
    assert found["changed_files"] is False
    (checkout / "a.txt").write_text("b")
    changed = manifest.commit(checkout / where)
    assert changed is not None
    assert changed["changed_files"] is True
    assert not ran.exists()


def log_text(directory: RunDirectory) -> str:
    return (directory.path / "log.txt").read_text()


def test_a_run_that_ends_well(directory: RunDirectory) -> None:
    seen: list[Any] = []

    an_hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    begun = {**directory.manifest, "started": an_hour_ago}
    directory.write_text("manifest.json", json.dumps(begun))

    def action(run: Run) -> None:
        logging.getLogger("dynopt_ray.x").info("hello")
        with run.progress.stage("work", 2) as stage:
            stage.advance()
            stage.result("done it")
        run.outcome("summary", "What came of it", pd.DataFrame({"network": ["a"], "accuracy": [1]}))
        seen.append(torch.get_num_threads())

    before, handlers = torch.get_num_threads(), list(logging.getLogger().handlers)
    carry_out(action, Run(directory, Silent(), num_threads=3))
    assert (seen, torch.get_num_threads()) == ([3], before)
    content = directory.manifest
    assert content["status"] == "finished"
    assert 3600 <= content["duration_s"] < 3660
    assert "error" not in content
    assert "hello" in log_text(directory)
    assert "done it" in log_text(directory)
    assert (directory.path / "report.html").is_file()
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), "interrupted", None),
        (BudgetError("too small"), "failed", "too small"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
    ],
)
def test_a_run_that_ends_with_an_error(
    directory: RunDirectory, error: BaseException, status: str, text: str | None
) -> None:
    def action(run: Run) -> None:
        run.directory.write_results(pd.DataFrame({"x": [1]}))
        raise error

    with pytest.raises(type(error)):
        carry_out(action, Run(directory, Silent()))
    content = directory.manifest
    assert (content["status"], content.get("error")) == (status, text)
    assert status in (directory.path / "report.html").read_text()
    assert json.dumps(content)
    assert (text is None) or (text in log_text(directory))


def test_threads_are_put_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
