"""The commands, called through typer's test runner."""

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynopt_ray import plugins
from dynopt_ray.cli import app

PRUNE = """
kind: prune
num_threads: 1
task: {name: digits-mlp, hidden: [16]}
train: {num_steps: 60, lr: 3e-3}
prune: {target: {remove: 0.5}}
"""

runner = CliRunner()


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "p.yaml").write_text(PRUNE)


def test_help_names_the_commands() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("run", "report", "plugins"):
        assert command in result.output
    assert runner.invoke(app, ["run", "--help"]).exit_code == 0


def test_version() -> None:
    assert re.match(r"\d+\.\d+\.\d+\n$", runner.invoke(app, ["--version"]).output)


def test_run_writes_a_directory_and_names_the_report() -> None:
    result = runner.invoke(app, ["run", "p.yaml", "--set", "seed=3"])
    assert result.exit_code == 0, result.output
    (directory,) = Path("runs").iterdir()
    assert directory.name.startswith("p-")
    assert result.stdout.splitlines()[-1] == f"report: {directory / 'report.html'}"
    assert "seed: 3" in (directory / "spec.yaml").read_text()
    # Not on a terminal: one line per stage.
    lines = result.stdout.splitlines()
    assert re.match(r"train \(\d+\.\d s\): accuracy 0\.\d{4} after 60 steps$", lines[0])
    assert re.match(r"prune \(\d+\.\d s\): accuracy ", lines[1])
    assert "Before and after pruning" in result.stdout
    assert "nonzero" in result.stdout


@pytest.mark.slow
def test_a_resolved_spec_runs_again() -> None:
    assert runner.invoke(app, ["run", "p.yaml", "--out", "one"]).exit_code == 0
    again = runner.invoke(app, ["run", "one/spec.yaml", "--out", "two"])
    assert again.exit_code == 0, again.output
    assert Path("one/spec.yaml").read_text() == Path("two/spec.yaml").read_text()
    network = "model/network.safetensors"
    assert Path("one", network).read_bytes() == Path("two", network).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dem"], "error: no spec 'dem'. Did you mean 'demo'? Known: "),
        (["p.yaml", "--set", "sed=3"], "error: p.yaml: sed: unknown key (its value is 3)."),
        (["p.yaml", "--set", "seed"], "error: --set 'seed' is not of the form path=value"),
        (["p.yaml", "--set", "task={name: digits-mlp, hidden: []}"], "error: task: 'digits-mlp' "
         "refuses its arguments: hidden is empty; give at least one width"),
        (["p.yaml", "--out", "p.yaml"], "error: cannot make the run directory p.yaml: File exists"),
        (["p.yaml", "--set", "task={name: digits-mlp, hidden: '[red]'}"], "error: task: "
         "'digits-mlp' refuses its arguments: hidden must be a list of widths such as [64, 32], "
         "not '[red]'"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_2_and_writes_nothing(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["run", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert "Traceback" not in result.output
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["p.yaml"]


def test_modules_in_the_working_directory_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_things.py").write_text(
        "from dynopt_ray.criteria import magnitude\n"
        "from dynopt_ray.tasks import load_task\n"
        "def criterion(): return magnitude(order=1)\n"
        "def task(width): return load_task('digits-mlp', {'hidden': [width]})\n"
    )
    own = ["--set", "task={name: 'own_things:task', width: 12}"]
    own += ["--set", "prune.criterion=own_things:criterion", "--out", "x"]
    result = runner.invoke(app, ["run", "p.yaml", *own])
    monkeypatch.delitem(sys.modules, "own_things", raising=False)
    assert result.exit_code == 0, result.output
    assert "width/0" in Path("x/results.csv").read_text()


def test_an_unknown_option_ends_with_2() -> None:
    assert runner.invoke(app, ["run", "p.yaml", "--ste", "a=1"]).exit_code == 2


def test_errors_during_a_run_end_with_1() -> None:
    result = runner.invoke(
        app, ["run", "p.yaml", "--out", "x", "--set", "train.lr=1e30", "--set", "optimizer=sgd"]
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("error: after 0 of 60 steps: the loss is ")
    assert result.stderr.rstrip().endswith("(see x/log.txt)")
    assert "Traceback" not in result.output
    assert '"status": "failed"' in Path("x/manifest.json").read_text()
    assert "DivergedError" in Path("x/log.txt").read_text()


def test_unexpected_errors_end_with_1_and_name_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("dynopt_ray.runs.kinds.prune.runner.figures", broken)
    result = runner.invoke(app, ["run", "p.yaml", "--out", "x"])
    assert result.exit_code == 1
    assert result.stderr == "error: ZeroDivisionError: by zero (traceback in x/log.txt)\n"
    assert "Traceback" in Path("x/log.txt").read_text()


@pytest.mark.slow
def test_report_is_rebuilt_and_compares() -> None:
    for name in ("x", "y"):
        assert runner.invoke(app, ["run", "p.yaml", "--out", name]).exit_code == 0
    before = Path("x/report.html").read_bytes()
    Path("x/report.html").unlink()
    result = runner.invoke(app, ["report", "x"])
    assert (result.exit_code, result.stdout) == (0, "report: x/report.html\n")
    assert Path("x/report.html").read_bytes() == before
    result = runner.invoke(app, ["report", "x", "y", "--out", "both.html"])
    assert (result.exit_code, result.stdout) == (0, "report: both.html\n")
    assert "2 runs compared" in Path("both.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "error: nowhere is not a run directory: there is no such directory\n"),
        (["."], 2, "error: . is not a run directory: there is no manifest.json in it\n"),
        ([], 2, ""),
    ],
)
def test_report_refuses_what_is_no_run(arguments: list[str], code: int, message: str) -> None:
    result = runner.invoke(app, ["report", *arguments])
    assert result.exit_code == code
    assert result.stderr.startswith(message)


def test_an_address_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    result = runner.invoke(app, ["run", "p.yaml", "--address", "10.0.0.1:6379"])
    assert result.exit_code == 2
    assert "a run of kind prune uses no cluster (these do: demo, policy" in result.stderr
    result = runner.invoke(app, ["run", "stream", "--address", "localhost"])
    assert result.exit_code == 2
    assert "'localhost' is not the address of a cluster" in result.stderr
    assert not list(tmp_path.glob("runs*"))


def test_plugins_are_listed_and_broken_ones_shown() -> None:
    plugins.register("criteria", "mine", object())
    try:
        result = runner.invoke(app, ["plugins"], env={"COLUMNS": "200"})
    finally:
        plugins.unregister("criteria", "mine")
    assert result.exit_code == 0
    for words in (("criteria", "magnitude", "built in"), ("criteria", "mine", "code")):
        assert any(all(word in line for word in words) for line in result.stdout.splitlines())
    assert "broken" not in result.stdout


def test_a_broken_plugin_is_shown_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins._BUILT_IN["rules"], "lost", "no_such_module:thing")
    result = runner.invoke(app, ["plugins"])
    assert result.exit_code == 0
    assert (
        "broken: rules 'lost': cannot import 'no_such_module' for 'no_such_module:thing': "
        "ModuleNotFoundError: No module named 'no_such_module'" in result.stdout
    )
