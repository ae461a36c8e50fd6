"""Wrong specs, clusters and storage: refused soon, before any training, and nothing is left."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynopt_ray.cli import app
from dynopt_ray.tasks import Task

SEARCH = """
kind: search
num_threads: 1
task: {name: digits-mlp, hidden: [16]}
train: {num_steps: 30, lr: 3e-3}
search: {num_trials: 2, searcher: random, scheduler: null, retrain_steps: 20, num_reports: 2}
space: {remove_fraction: {low: 0.1, high: 0.6}}
"""
PRUNE = """
kind: prune
num_threads: 1
task: {name: digits-mlp, hidden: [16]}
train: {num_steps: 30, lr: 3e-3}
prune: {target: {remove: 0.5}}
"""
runner = CliRunner()


@pytest.fixture(autouse=True)
def with_specs(in_a_directory: Path) -> None:
    (in_a_directory / "s.yaml").write_text(SEARCH)
    (in_a_directory / "p.yaml").write_text(PRUNE)


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trains a network fails: what is refused must be refused before."""

    def train_steps(*_: object, **__: object) -> None:
        pytest.fail("a network was trained")

    monkeypatch.setattr(Task, "train_steps", train_steps)


WRONG_SPECS = {
    "a misspelt key": (["sed=3"], "sed: unknown key"),
    "a misspelt key below": (["search.num_trial=3"], "Did you mean 'num_trials'?"),
    "a text for a number": (["search.num_trials=ten"], "search.num_trials: must be a whole number"),
    "a number for a list": (["task={name: digits-mlp, hidden: 3}"], "hidden must be a list"),
    "no trials": (["search.num_trials=0"], "num_trials"),
    "a searcher that there is not": (["search.searcher=optun"], "Did you mean 'optuna'?"),
    "a scheduler that there is not": (["search.scheduler=ashaa"], "Did you mean 'asha'?"),
    "a searcher's argument": (["search.searcher={name: random, seeds: 3}"], "seeds"),
    "a task that there is not": (["task=digits-ml"], "Did you mean 'digits-mlp'?"),
    "a module that there is not": (["task=my_things:task"], "my_things"),
    "an optimizer that there is not": (["optimizer=adm"], "Did you mean"),
    "a setting that trials do not have": (["space.remove=0.5"], "a trial has no setting 'remove'"),
    "a range upside down": (["space.remove_fraction={low: 0.6, high: 0.1}"], "remove_fraction"),
    "a number of trials that is missing": (["search.num_trials=null"], "num_trials is missing"),
    "trials without CPUs": (["search.cpus_per_trial=0"], "cpus_per_trial"),
    "two GPUs for a trial": (["search.gpus_per_trial=2"], "gpus_per_trial"),
    "a negative weight": (["cost_weight=-1"], "cost_weight: must be greater than or equal to 0"),
    "training and a start": (["start=here"], "give either train"),
    "a start that is missing": (["train=null", "start=here"], "there is no network at here"),
    "data that are missing": (["task={name: fashion-mnist-mlp, data_dir: none}"], "lacks"),
    "a grid over a range": (["search.searcher=grid"], "grid"),
}
WRONG_CLUSTERS = {
    "nothing at the address": (["--address", "127.0.0.1:1"], "no cluster answers at 127.0.0.1:1"),
    "nothing for a client": (["--address", "ray://127.0.0.1:1"], "no cluster answers at ray://"),
    "no address at all": (["--address", "nonsense"], "is not the address of a cluster"),
    "more CPUs than there are": (["--set", "search.cpus_per_trial=9999"], "one task needs 9999"),
    "more GPUs than there are": (["--set", "search.gpus_per_trial=1"], "and 1 GPUs"),
    "a kind of GPU": (["--set", "search.accelerator_type=H100"], "of type H100"),
    "a resource of another cluster": (["--set", "search.resources={licence: 1}"], "1 licence"),
}


def refused(arguments: list[str], message: str, spec: str = "s.yaml") -> None:
    """Check that a run is refused with a message, soon, and that nothing is left of it."""
    before = sorted(path.name for path in Path.cwd().rglob("*"))
    begun = time.monotonic()
    result = runner.invoke(app, ["run", spec, "--out", "some/where", *arguments])
    took = time.monotonic() - begun
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert took < 10 + 5 * max(0.0, os.getloadavg()[0] / (os.cpu_count() or 1) - 1)
    assert sorted(path.name for path in Path.cwd().rglob("*")) == before


@pytest.mark.usefixtures("without_training")
@pytest.mark.parametrize(("overrides", "message"), WRONG_SPECS.values(), ids=list(WRONG_SPECS))
def test_a_wrong_spec_is_refused(overrides: list[str], message: str) -> None:
    refused([part for value in overrides for part in ("--set", value)], message)


@pytest.mark.usefixtures("without_training")
@pytest.mark.parametrize(
    ("arguments", "message"), WRONG_CLUSTERS.values(), ids=list(WRONG_CLUSTERS)
)
def test_a_wrong_cluster_is_refused(arguments: list[str], message: str) -> None:
    refused(arguments, message)


@pytest.mark.usefixtures("without_training")
def test_a_cluster_for_a_run_without_one_is_refused() -> None:
    refused(["--address", "127.0.0.1:1"], "a run of kind prune uses no cluster", "p.yaml")


@pytest.mark.usefixtures("without_training")
def test_files_that_are_no_specs_are_refused() -> None:
    Path("broken.yaml").write_text("kind: [search")
    refused([], "broken.yaml", "broken.yaml")
    refused([], "Did you mean 'search'?", "serch")


@pytest.fixture
def wrong_environment(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Set one part of the environment wrong."""

    def set_wrong(part: str) -> None:
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (elsewhere / "empty").touch()
        name, value = {
            "token": ("RAY_AUTH_TOKEN_PATH", str(elsewhere / "empty")),
            "place": ("RAY_TMPDIR", str(elsewhere / "missing")),
            "address": ("RAY_ADDRESS", "127.0.0.1:1"),
        }[part]
        if part == "token":
            monkeypatch.delenv("RAY_AUTH_TOKEN")
            monkeypatch.setenv("HOME", str(elsewhere))
        monkeypatch.setenv(name, value)

    return set_wrong


@pytest.mark.usefixtures("without_training")
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("token", "empty is empty, so anybody could guess the token"),
        ("place", "missing, which does not exist"),
        ("address", "no cluster answers at 127.0.0.1:1"),
    ],
)
def test_a_wrong_environment_is_refused(
    part: str, message: str, wrong_environment: Callable[[str], None]
) -> None:
    wrong_environment(part)
    refused([], message)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that accepts connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.usefixtures("without_training")
def test_a_server_that_is_no_cluster_is_refused(silent_server: str) -> None:
    refused(["--address", silent_server], f"what answers at {silent_server} is not a Ray cluster")


@pytest.mark.usefixtures("without_training")
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s.yaml", "cannot make the run directory s.yaml: File exists"),
        ("s.yaml/below", "cannot make the run directory s.yaml/below: Not a directory"),
        ("full", "full exists already and has other files in it, such as mine.txt"),
        ("old", "old has the results of a run"),
    ],
)
def test_a_wrong_place_for_results_is_refused(out: str, message: str) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("keep me")
    Path("old").mkdir()
    Path("old/results.csv").write_text("1")
    Path("old/manifest.json").write_text("{}")
    refused(["--out", out], message)
    assert Path("full/mine.txt").read_text() == "keep me"


def test_a_directory_of_a_refused_run_is_used_again() -> None:
    refused(["--set", "search.cpus_per_trial=9999"], "one task needs 9999")
    local = ["--out", "some/where", "--set", "search.local=true"]
    done = runner.invoke(app, ["run", "s.yaml", *local])
    assert done.exit_code == 0, done.output
    assert Path("some/where/report.html").is_file()
    refused(["--out", "some/where"], "continue it with `dynopt resume some/where`")
