"""`dynopt doctor` and `dynopt run --dry-run`: they tell what is there, and change nothing."""

import importlib.metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynopt_ray.cli import app
from dynopt_ray.commands import examine
from tests.cli.test_cli_refusals import PRUNE, SEARCH

runner = CliRunner()


@pytest.fixture(autouse=True)
def with_specs(in_a_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (in_a_directory / "s.yaml").write_text(SEARCH)
    (in_a_directory / "p.yaml").write_text(PRUNE)


@pytest.mark.ray
@pytest.mark.slow
def test_a_machine_that_has_everything_is_well() -> None:
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert not [line for line in lines if line.startswith("missing")]
    assert f"ok      torch: {importlib.metadata.version('torch')}" in lines
    assert any(line.startswith("ok      Ray: starts on this machine: 127.0.0.1") for line in lines)
    assert any(line.startswith(f"ok      storage: {Path.cwd()} has ") for line in lines)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["p.yaml", "s.yaml"]


def test_what_is_missing_is_told_and_ends_with_1() -> None:
    Path("file").touch()
    result = runner.invoke(app, ["doctor", "--address", "127.0.0.1:1", "--storage", "file/below"])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("missing")] == [
        "missing Ray",
        "missing storage",
    ]
    assert "what runs need is missing: 2" in result.stderr


def test_data_in_a_directory_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").touch()
    monkeypatch.setenv("DYNOPT_DATA", str(tmp_path))
    found = {f.what: f.text for f in examine("127.0.0.1:1", ".")}
    assert found["data: Fashion-MNIST"] == str(tmp_path)


def test_a_dry_run_shows_the_work_and_writes_nothing() -> None:
    result = runner.invoke(app, ["run", "s.yaml", "--dry-run", "--set", "search.num_trials=7"])
    assert result.exit_code == 0, result.output
    assert "30 optimizer steps" in result.stdout
    assert "140 optimizer steps" in result.stdout
    assert "7 trials of 20 steps" in result.stdout
    assert "a trial or actor reserves 1 CPUs and 0 GPUs; at once: " in result.stdout
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["p.yaml", "s.yaml"]


@pytest.mark.parametrize("spec", ["p.yaml", "adapt", "stream", "policy", "demo"])
def test_every_kind_has_a_dry_run(spec: str) -> None:
    result = runner.invoke(app, ["run", spec, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "from a few steps measured on this machine" in result.stdout
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["p.yaml", "s.yaml"]


def test_a_dry_run_is_refused_as_the_run_would_be() -> None:
    wrong = runner.invoke(app, ["run", "s.yaml", "--dry-run", "--set", "search.num_trials=ten"])
    assert wrong.exit_code == 2
    assert "search.num_trials: must be a whole number" in wrong.stderr
    full = runner.invoke(app, ["run", "s.yaml", "--dry-run", "--set", "search.cpus_per_trial=9999"])
    assert full.exit_code == 2
    assert "one task needs 9999 CPUs" in full.stderr
