"""Searches over trials of one's own, and the files of a winner."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from dynopt_ray.errors import DynoptError
from dynopt_ray.runs.directory import RunDirectory
from dynopt_ray.runs.kinds.registry import prepare
from dynopt_ray.runs.loading import check_spec, spec_text
from dynopt_ray.runs.progress import Silent
from dynopt_ray.runs.run import Run, carry_out
from dynopt_ray.structure import load, plan_from_json, save, trace
from dynopt_ray.tasks import load_task
from tests.runs.test_run_runners import SEARCH, TASK

TRIALS = """
from dataclasses import dataclass

from dynopt_ray.errors import SpecError


def at_once(config):
    return {"accuracy": 1 - (config["x"] - 0.3) ** 2, "cost": config["x"]}


@dataclass
class Step:
    width: float
    peak: float = 0.5

    def check(self, config):
        if config["x"] > 2:
            raise SpecError("space.x: at most 2")

    def __call__(self, config):
        for step in (1, 2):
            near = abs(config["x"] - self.peak) < self.width / step
            yield {"step": step, "accuracy": float(near), "final": step == 2}


class Empty:
    pass
"""
OWN: dict[str, Any] = {
    "kind": "search",
    "trial": "own_trials:at_once",
    "search": {"num_trials": 12, "local": True},
    "space": {"x": {"low": 0.0, "high": 1.0}},
}


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Provide the module `own_trials`."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_trials.py").write_text(TRIALS)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield
    sys.modules.pop("own_trials", None)


def run(data: dict[str, Any], path: Path) -> Path:
    """Carry out a run; return its directory."""
    spec = check_spec(data, source="test")
    action = prepare(spec)
    about = {"spec": "test", "kind": spec.kind, "seed": spec.seed}
    directory = RunDirectory.create(path, spec_text=spec_text(spec), about=about)
    carry_out(action, Run(directory, Silent()))
    return path


def test_a_function_is_searched_without_a_task(tmp_path: Path) -> None:
    path = run(OWN, tmp_path / "run")
    trials = pd.read_csv(path / "results.csv")
    assert len(trials) == 12
    (best,) = trials.nlargest(1, "utility").to_dict("records")
    assert best["accuracy"] == pytest.approx(1 - (best["config.x"] - 0.3) ** 2)
    assert (path / "report.html").is_file()
    assert not (path / "model" / "network.safetensors").exists()


def test_a_mapping_makes_a_trial_with_arguments(tmp_path: Path) -> None:
    trial = {"name": "own_trials:Step", "width": 0.4}
    space = {"x": [0.05, 0.2, 0.6]}
    path = run({**OWN, "trial": trial, "space": space}, tmp_path / "run")
    trials = pd.read_csv(path / "results.csv").sort_values("config.x")
    assert trials["accuracy"].tolist() == [0, 0, 1]
    assert len(pd.read_csv(path / "tables" / "trials.csv")) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trial": "own_trials"}, "trial: .*must be module:function of a trial"),
        ({"trial": "own_trials:missing"}, "'own_trials' has no attribute 'missing'"),
        ({"trial": "no_such_module:f"}, "cannot import 'no_such_module'"),
        ({"trial": "own_trials:Step"}, "Of a class, give a mapping with its name and its argum"),
        ({"trial": {"name": "own_trials:Step"}}, "own_trials:Step: TypeError.*'width'"),
        ({"trial": {"name": "own_trials:Empty"}}, "give a function of a configuration"),
        (
            {"trial": {"name": "own_trials:Step", "width": 1}, "space": {"x": [1, 3]}},
            "space.x: at most 2",
        ),
        ({"task": "digits-mlp"}, "task: unknown key"),
        ({"search": {"num_trials": 2, "retrain_steps": 5}}, "retrain_steps: unknown key"),
    ],
)
def test_what_is_no_trial_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DynoptError, match=message):
        prepare(check_spec({**OWN, **changes}, source="test"))


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False], ids=["own trial", "pruning"])
def test_the_winner_is_repeated_by_its_spec(own: bool, tmp_path: Path) -> None:
    space = {"x": [0.2, 0.4], "kind": [{"name": "a", "y": [1, 2]}, {"name": "b"}], "l": [[1, 2]]}
    pruning = {
        "remove_fraction": [0.3, 0.6],
        "lr": [{"name": "cosine", "initial": {"low": 1e-3, "high": 1e-2}}, 0.01],
        "batch_size": [16, 64],
    }
    data = {**OWN, "space": space} if own else {**SEARCH, "space": pruning}
    found = run(data, tmp_path / "found")
    winner = yaml.safe_load((found / "model" / "winner.yaml").read_text())
    again = run(winner, tmp_path / "again")
    (row,) = pd.read_csv(again / "results.csv").to_dict("records")
    figures = ["accuracy", "cost", "utility", "step"]
    trials = pd.read_csv(found / "results.csv")
    assert (trials[figures] == pd.Series(row)[figures]).all(axis=1).any()
    if not own:
        networks = [path / "model" / "network.safetensors" for path in (found, again)]
        new = [load_task("digits-mlp", {"hidden": TASK["hidden"]}).new_model() for _ in networks]
        states = []
        for path, model in zip(networks, new, strict=True):
            load(path, model)
            states.append({name: value.tolist() for name, value in model.state_dict().items()})
        assert states[0] == states[1]


@pytest.mark.slow
def test_the_plans_of_a_network_give_its_widths(tmp_path: Path) -> None:
    path = run({**SEARCH, "space": {"remove_fraction": [0.5]}}, tmp_path / "run")
    task = load_task("digits-mlp", {"hidden": TASK["hidden"]})
    model, found = task.new_model(), task.new_model()
    load(path / "model" / "network.safetensors", found)
    graph = trace(model, task.example_inputs())
    for plan in json.loads((path / "model" / "plans.json").read_text()):
        graph.apply(plan_from_json(json.dumps(plan)))
    save(tmp_path / "same.safetensors", model)
    assert graph.widths == trace(found, task.example_inputs()).widths != {"0": 24}
