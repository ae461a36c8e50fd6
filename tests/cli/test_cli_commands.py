"""The commands, called through typer's test runner."""

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynopt_ray import plugins
from dynopt_ray.cli import app
from dynopt_ray.runs import load_spec

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
    for module in ("marker", "odd_plugin"):
        monkeypatch.delitem(sys.modules, module, raising=False)
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
         "refuses its arguments: hidden has 0 widths; give 1 to 200"),
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


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "it raises KeyboardInterrupt when it is imported"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("def __getattr__(name): raise OSError('no ' + name)", "OSError: no thing"),
        ("def __getattr__(name): raise SystemExit", "SystemExit: "),
    ],
)
def test_a_plugin_can_raise_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, error: str
) -> None:
    (tmp_path / "odd_plugin.py").write_text(module)
    monkeypatch.setitem(plugins.BUILT_IN["rules"], "odd", "odd_plugin:thing")
    result = runner.invoke(app, ["plugins"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("broken"))
    assert line.startswith("broken: rules 'odd': ")
    assert line.rstrip().endswith(error.strip())


def test_names_of_plugins_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "dynopt_ray.schedules:constant"
    for name in ("[red]x[/red]", "[/]", "a\x1b[2Jb"):
        monkeypatch.setitem(plugins.BUILT_IN["rules"], name, target)
    result = runner.invoke(app, ["plugins"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for shown in ("[red]x[/red]", "[/]", r"a\x1b[2Jb"):
        assert any(line.split()[1:2] == [shown] for line in result.stdout.splitlines())
    assert "\x1b" not in result.stdout


def test_a_plugin_that_is_shadowed_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tmp_path / "other-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[dynopt_ray.criteria]\nmagnitude = lost_module:x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = runner.invoke(app, ["plugins"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert (
        "not used: criteria 'magnitude' of other, because the plugin of this name from built in "
        "comes first; write lost_module:x instead" in result.stdout
    )
    assert "broken: criteria 'magnitude': cannot import 'lost_module'" in result.stdout
    assert plugins.names("criteria").count("magnitude") == 1


@pytest.mark.parametrize(
    "setting",
    [
        "train.lr={name: 'marker:rate'}",
        "train.lr={name: sequence, schedules: [{name: 'marker:rate'}], milestones: []}",
        "prune.retrain={num_steps: 3, lr: {name: 'marker:rate'}}",
        "prune.criterion=marker:rate",
        "prune.schedule={name: 'marker:rate'}",
        "task=marker:rate",
    ],
)
def test_reading_a_spec_runs_no_code_that_it_names(tmp_path: Path, setting: str) -> None:
    (tmp_path / "marker.py").write_text(
        "open('ran', 'w').close()\ndef rate(): raise ValueError('no')\n"
    )
    sys.path.append(str(tmp_path))
    spec = load_spec("p.yaml", [setting])
    assert not Path("ran").exists()
    result = runner.invoke(app, ["run", "p.yaml", "--set", setting])
    assert Path("ran").exists()
    assert result.exit_code == 2
    assert "marker:rate" in result.stderr
    assert list(tmp_path.glob("runs*")) == []
    assert spec.kind == "prune"


def test_a_home_that_cannot_be_written_is_found_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    result = runner.invoke(app, ["run", "search"])
    assert result.exit_code == 2
    assert "needs a token, but" in result.stderr
    assert "or HOME to a directory that can be written" in result.stderr
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "missing"))
    assert "RAY_TMPDIR is" in runner.invoke(app, ["run", "search"]).stderr
    assert list(tmp_path.glob("runs*")) == []


def test_a_broken_plugin_is_shown_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["rules"], "lost", "no_such_module:thing")
    result = runner.invoke(app, ["plugins"])
    assert result.exit_code == 0
    assert (
        "broken: rules 'lost': cannot import 'no_such_module' for 'no_such_module:thing': "
        "ModuleNotFoundError: No module named 'no_such_module'" in result.stdout
    )
