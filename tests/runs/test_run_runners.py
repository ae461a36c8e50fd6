"""A small run of every kind, from its spec to its directory."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from dynopt_ray import plugins
from dynopt_ray.errors import CheckpointError, SpecError
from dynopt_ray.policies import DEFAULT_ACTIONS, DQNPolicy, DuelingNetwork
from dynopt_ray.policies.observation import FEATURES
from dynopt_ray.runs.directory import RunDirectory
from dynopt_ray.runs.kinds.registry import prepare
from dynopt_ray.runs.loading import check_spec, spec_text
from dynopt_ray.runs.progress import Silent
from dynopt_ray.runs.run import Run, carry_out
from dynopt_ray.tasks import load_task
from dynopt_ray.training.loop.stored_networks import loaded_network

TASK = {"name": "digits-mlp", "hidden": [24]}
BASE: dict[str, Any] = {
    "num_threads": 1,
    "task": TASK,
    "train": {"num_steps": 120, "lr": {"name": "cosine", "initial": 3e-3}},
}
PRUNE = {
    **BASE,
    "kind": "prune",
    "prune": {
        "target": {"remove": 0.8},
        "granularity": "weight",
        "rounds": 2,
        "recovery": "random",
        "retrain": {"num_steps": 30, "lr": {"name": "polynomial", "initial": 0.01}},
    },
}
SEARCH = {
    **BASE,
    "kind": "search",
    "search": {
        "num_trials": 5,
        "retrain_steps": 20,
        "num_reports": 4,
        "local": True,
        "scheduler": "asha",
    },
    "space": {"remove_fraction": {"low": 0.1, "high": 0.8}, "lr": [0.01, 0.003]},
}
ADAPT = {
    **BASE,
    "kind": "adapt",
    "policy": {"name": "data_sized_widths", "samples_per_weight": 2.0},
    "adapt": {"horizon": 4, "train_steps": 5},
}
STREAM = {
    **BASE,
    "kind": "stream",
    "stream": {"num_events": 240, "drifts": [{"at": 120}], "window": 40},
    "learner": {"local": True, "lr": 0.02, "reactions": ["replay"]},
}
POLICY = {
    "kind": "policy",
    "num_threads": 1,
    "env": {"task": TASK, "horizon": 4, "train_steps": 2, "num_starts": 2, "start_steps": 30},
    "policy": {"num_steps": 300, "num_envs": 4, "warmup_steps": 50, "updates_per_step": 1},
    "num_episodes": 4,
}


def run(data: dict[str, Any], path: Path) -> RunDirectory:
    spec = check_spec(data, source="test")
    action = prepare(spec)
    about = {"spec": "test", "kind": spec.kind, "seed": spec.seed}
    directory = RunDirectory.create(path, spec_text=spec_text(spec), about=about)
    carry_out(action, Run(directory, Silent(), num_threads=spec.num_threads))
    return directory


def table(directory: RunDirectory, name: str) -> pd.DataFrame:
    found = directory.table(name)
    assert found is not None
    return found


def rows(directory: RunDirectory, name: str) -> dict[str, dict[str, Any]]:
    """Return a table as a mapping from its first column to its rows."""
    frame = table(directory, name)
    return {str(frame.iloc[i, 0]): dict(frame.iloc[i]) for i in range(len(frame))}


def accuracy_of(directory: RunDirectory) -> float:
    network = (directory.path / "model" / "network.safetensors").read_bytes()
    task = load_task(TASK)
    return task.evaluate(loaded_network(task, network)).metric


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(PRUNE, tmp_path_factory.mktemp("pruned") / "a")


def test_prune_runs_the_loop_of_the_article(pruned: RunDirectory) -> None:
    directory = pruned
    assert directory.manifest["status"] == "finished"
    summary = rows(directory, "summary")
    assert summary["after"]["nonzero"] < 0.3 * summary["before"]["nonzero"]
    assert summary["after"]["error"] == pytest.approx(1 - summary["after"]["accuracy"])
    assert accuracy_of(directory) == summary["after"]["accuracy"]
    history = table(directory, "results")
    assert history["round"].tolist() == [0, 1, 2]
    curves = table(directory, "curves")
    assert list(dict.fromkeys(curves["phase"])) == ["train", "retrain"]
    assert curves["step"].max() == 120 + 2 * 30
    plots = {path.stem for path in (directory.path / "plots").iterdir()}
    assert plots == {"pareto", "accuracy", "loss", "lr"}


@pytest.mark.parametrize("rate", ["plateau", "hypergradient"])
def test_lr_controllers_can_retrain(rate: str, tmp_path: Path) -> None:
    arguments = {"patience": 1} if rate == "plateau" else {"hyper_lr": 0.01}
    phase = {"num_steps": 30, "lr": {"name": rate, "initial": 0.01, **arguments}}
    directory = run({**PRUNE, "prune": {**PRUNE["prune"], "retrain": phase}}, tmp_path / "a")
    assert directory.manifest["status"] == "finished"
    curves = table(directory, "curves")
    assert curves[curves["phase"] == "retrain"]["step"].tolist() == [150, 180]


@pytest.mark.slow
def test_the_same_spec_gives_the_same_results(tmp_path: Path) -> None:
    one, two = run(SEARCH, tmp_path / "a"), run(SEARCH, tmp_path / "b")
    assert (one.path / "results.csv").read_text() == (two.path / "results.csv").read_text()
    network = "model/network.safetensors"
    assert (one.path / network).read_bytes() == (two.path / network).read_bytes()


def test_widths_are_recorded_per_round(tmp_path: Path) -> None:
    units = {"target": {"remove": 0.5}, "rounds": 2}
    directory = run({**PRUNE, "prune": units}, tmp_path / "a")
    assert table(directory, "widths")["round"].tolist() == [0, 1, 2]


def test_prune_follows_min_widths_schedule_and_distillation(tmp_path: Path) -> None:
    settings = {
        "target": {"remove": 0.75},
        "rounds": 3,
        "schedule": {"name": "polynomial", "initial": 0.0, "power": 3, "final": 1.0},
        "min_widths": {0: 13},
        "scope": "layer",
        "retrain": {"num_steps": 30, "lr": 0.003},
    }
    losses = {}
    for name, teacher in (("alone", None), ("taught", {"weight": 3.0, "temperature": 2.0})):
        spec = {**PRUNE, "prune": {**settings, "distillation": teacher}}
        directory = run(spec, tmp_path / name)
        widths = table(directory, "widths")["0"].tolist()
        losses[name] = table(directory, "results")["train_loss"].tolist()[-1]
    assert widths[0] - widths[1] > widths[1] - widths[2] >= 0
    assert widths[-1] == 13
    assert losses["alone"] != losses["taught"]


def test_search_keeps_the_winner(tmp_path: Path) -> None:
    directory = run(SEARCH, tmp_path / "a")
    trials = table(directory, "results")
    best = trials[trials["status"] == "finished"].sort_values("utility").iloc[-1]
    assert accuracy_of(directory) == best["accuracy"]
    summary = rows(directory, "summary")
    assert summary[f"trial {best['trial']}"]["utility"] == pytest.approx(best["utility"])
    assert summary["before"]["utility"] == pytest.approx(summary["before"]["accuracy"] - 0.1)


def test_a_search_begins_at_the_rate_of_the_range_test(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rates = {"name": "cosine", "initial": {"low": 1e-3, "high": 0.2, "log": True}}
    spec = {
        **SEARCH,
        "search": {"num_trials": 2, "retrain_steps": 20, "local": True, "find_rate": True},
        "space": {"remove_fraction": {"low": 0.3, "high": 0.9}, "lr": rates},
    }
    directory = run(spec, tmp_path / "a")
    first = table(directory, "results").iloc[0]
    assert first["config.remove_fraction"] == pytest.approx(0.6)
    assert f"begins at the rate {first['config.lr.initial']:.3g}" in caplog.text


def test_a_run_starts_from_the_network_of_another(pruned: RunDirectory, tmp_path: Path) -> None:
    later = run({**SEARCH, "train": None, "start": str(pruned.path)}, tmp_path / "a")
    end, start = rows(pruned, "summary")["after"], rows(later, "summary")["before"]
    assert start["nonzero"] == end["nonzero"]
    assert start["accuracy"] == end["accuracy"]


def test_adapt_follows_a_rule(tmp_path: Path) -> None:
    directory = run(ADAPT, tmp_path / "a")
    history = table(directory, "results")
    assert "shrink" in set(history["action"].dropna())
    summary = rows(directory, "summary")
    assert summary["after"]["params"] < summary["before"]["params"]
    assert accuracy_of(directory) == summary["after"]["accuracy"]
    best = history[history["kept"]].sort_values("smooth_utility").iloc[-1]
    assert summary["after"]["utility"] == pytest.approx(best["utility"])
    assert summary["before"]["utility"] == pytest.approx(history["utility"][0])
    log = (directory.path / "log.txt").read_text()
    assert f"utility {history['utility'][0]:.4f} → {best['utility']:.4f}" in log
    curves = table(directory, "curves")
    assert curves.loc[curves["phase"] == "adapt", "lr"].notna().all()
    widths = table(directory, "widths")
    assert widths.columns[0] == "decision"
    assert widths["0"].iloc[0] == 24
    assert widths["0"].is_monotonic_decreasing


def test_adapt_follows_a_saved_policy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = DuelingNetwork(len(FEATURES), len(DEFAULT_ACTIONS), [8], 4)
    path = tmp_path / "policy" / "policy.safetensors"
    path.parent.mkdir()
    DQNPolicy(network, hidden=[8], head=4).save(path)
    directory = run({**ADAPT, "policy": str(tmp_path)}, tmp_path / "a")
    assert directory.manifest["status"] == "finished"


def test_a_stream_that_drifts_throughout_has_only_the_last_window(tmp_path: Path) -> None:
    drifts = [{"at": 0, "kind": "rotation"}, {"at": 100, "width": 140}]
    directory = run({**STREAM, "stream": {**STREAM["stream"], "drifts": drifts}}, tmp_path / "a")
    assert list(table(directory, "drift")) == ["network", "last_window"]


def test_stream_learns_what_the_frozen_network_cannot(tmp_path: Path) -> None:
    directory = run(STREAM, tmp_path / "a")
    drift = rows(directory, "drift")
    assert drift["learning"]["before_drift"] > 0.8
    assert drift["learning"]["last_window"] > drift["frozen"]["last_window"] + 0.1
    stream = table(directory, "stream")
    assert stream.loc[stream["mark"] == "drift", "event"].tolist() == [120]
    assert table(directory, "results")["event"].iloc[-1] == 240
    assert (directory.path / "learner" / "snapshot.safetensors").is_file()


@pytest.mark.ray
def test_the_actor_learns_as_this_process_does(tmp_path: Path) -> None:
    here = run(STREAM, tmp_path / "here")
    learner = {**STREAM["learner"], "local": False}
    there = run({**STREAM, "learner": learner}, tmp_path / "there")
    assert (here.path / "results.csv").read_text() == (there.path / "results.csv").read_text()


@pytest.mark.ray
def test_policy_learns_and_is_compared(tmp_path: Path) -> None:
    directory = run(POLICY, tmp_path / "a")
    policies = table(directory, "policies")
    assert policies["policy"].tolist() == ["learned", "random"]
    assert len(table(directory, "results")) == 8
    assert [path.name for path in (directory.path / "policy").iterdir()] == ["policy.safetensors"]
    policy = DQNPolicy.load(directory.path / "policy" / "policy.safetensors")
    assert policy.num_features == len(FEATURES)


@pytest.mark.ray
@pytest.mark.slow
def test_demo_does_it_all(tmp_path: Path) -> None:
    demo = {
        **BASE,
        "kind": "demo",
        "cost_weight": 0.3,
        "policy": POLICY["policy"],
        "num_episodes": 4,
        "adapt": {"horizon": 4, "train_steps": 5},
        "search": {"num_trials": 4, "retrain_steps": 20, "num_reports": 2},
        "space": SEARCH["space"],
        "stream": STREAM["stream"],
        "learner": {"lr": 0.02},
    }
    directory = run(demo, tmp_path / "a")
    assert directory.manifest["status"] == "finished"
    assert table(directory, "summary")["network"].tolist() == [
        "before",
        "after policy",
        "after search",
    ]
    for name in ("policies", "drift", "front", "curves", "pareto", "widths", "policy", "stream"):
        assert len(table(directory, name))
    assert len(table(directory, "results")) == 4
    assert (directory.path / "policy" / "policy.safetensors").is_file()
    assert (directory.path / "model" / "network.safetensors").is_file()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {**PRUNE, "task": {"name": "digits-mlp", "hiden": [8]}},
            "task: 'digits-mlp' has no argument 'hiden'. Did you mean 'hidden'? Known: hidden, "
            "rows, classes, pad_to, batch_size, seed, device.",
        ),
        (
            {**PRUNE, "prune": {"target": {"remove": 0.5}, "min_widths": {"9": 3}}},
            "prune.min_widths: no width group '9'.",
        ),
        (
            {**PRUNE, "train": None, "start": "nowhere"},
            "start: there is no network at nowhere; give a run directory with "
            "model/network.safetensors, or the file itself",
        ),
        (
            {**ADAPT, "policy": "useless_shrinkin"},
            f"policy: 'useless_shrinkin' is neither a rule ({', '.join(plugins.names('rules'))}), "
            "nor a policy that cuts once (allocated_cut, ladder_cut, single_cut), nor the run "
            "directory or file of a learned policy: there is no useless_shrinkin. Did you mean "
            "'useless_shrinking'?",
        ),
        (
            {**ADAPT, "policy": "ladder_cut", "adapt": {"budget": {"flops": 0.5}}},
            "adapt.budget: 'ladder_cut' decides by utility alone and keeps to no budget; ",
        ),
        (
            {**ADAPT, "policy": {"name": "data_sized_widths", "slak": 3}},
            "'data_sized_widths' has no argument 'slak'. Did you mean 'slack'? Known: "
            "samples_per_weight, slack.",
        ),
        (
            {**SEARCH, "search": {"num_trials": 1, "scheduler": {"name": "asha", "grace": 3}}},
            "'asha' has no argument 'grace'.",
        ),
        (
            {**SEARCH, "search": {"num_trials": 1, "find_rate": True}},
            "search.find_rate: the space has no range of learning rates to begin in; give lr one, ",
        ),
        (
            {**STREAM, "stream": {"drifts": [{"at": 3, "kind": "rotation"}], "splits": ["test"]}},
            None,
        ),
        (
            {**STREAM, "stream": {"drifts": [{"at": 99_999}], "splits": ["test"]}},
            "stream: a drift at event 99999 never comes: there are ",
        ),
        (
            {**STREAM, "learner": {"detector": {"name": "kswin", "sed": 3}}},
            "learner: 'kswin' ",
        ),
        (
            {**POLICY, "env": {"task": "digits-mpl"}},
            "env: no task 'digits-mpl'. Did you mean 'digits-mlp'?",
        ),
        ({**POLICY, "env": {"horizn": 3}}, "env: no option 'horizn'. Did you mean 'horizon'?"),
        (
            {**POLICY, "env_id": "dynopt_envs:dynopt/Arcitecture-v0"},
            "env: dynopt_envs:dynopt/Arcitecture-v0 cannot be made: ",
        ),
        (
            {**PRUNE, "prune": {**PRUNE["prune"], "criterion": "fpgm"}},
            "prune.criterion: fpgm scores units only",
        ),
    ],
)
def test_what_a_spec_names_is_checked_before_anything_is_written(
    data: dict[str, Any], message: str | None
) -> None:
    spec = check_spec(data, source="test")
    if message is None:
        prepare(spec)
        return
    with pytest.raises(SpecError) as caught:
        prepare(spec)
    assert str(caught.value).startswith(message)


def test_a_start_of_another_task_is_refused(pruned: RunDirectory) -> None:
    changed = {"task": "digits-cnn", "train": None, "start": str(pruned.path)}
    spec = check_spec({**SEARCH, **changed}, source="test")
    with pytest.raises(CheckpointError, match="does not fit this"):
        prepare(spec)
