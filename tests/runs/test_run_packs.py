"""Runs whose trials are in packs, and specs that ask for packs that cannot be."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from dynopt_ray.errors import DynoptError
from dynopt_ray.runs.kinds.registry import prepare
from dynopt_ray.runs.loading import check_spec
from tests.runs.test_run_own_trial import OWN, run
from tests.runs.test_run_runners import SEARCH

SPACE = {
    "remove_fraction": {"low": 0.1, "high": 0.8},
    "lr": [{"name": "cosine", "initial": {"low": 1e-3, "high": 1e-2}}, 0.01],
}
PACKED: dict[str, Any] = {
    **SEARCH,
    "search": {**SEARCH["search"], "scheduler": None, "num_trials": 5, "pack": 3},
    "space": SPACE,
}


def test_the_winner_of_a_pack_is_repeated_by_its_spec(tmp_path: Path) -> None:
    found = run(PACKED, tmp_path / "found")
    winner = yaml.safe_load((found / "model" / "winner.yaml").read_text())
    assert winner["search"]["pack"] == 1
    again = run(winner, tmp_path / "again")
    (row,) = pd.read_csv(again / "results.csv").to_dict("records")
    figures = ["accuracy", "cost", "utility", "loss", "validation_loss"]
    trials = pd.read_csv(found / "results.csv")
    assert (trials[figures] == pd.Series(row)[figures]).all(axis=1).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {**PACKED["search"], "pack": 0}}, "search.pack: pack is .*; give a num"),
        (
            {"search": {**PACKED["search"], "pack": "many"}},
            "search.pack: pack is .*; give a number",
        ),
        ({"search": {**PACKED["search"], "pack": 1.5}}, "search.pack: pack is .*; give a num"),
        ({"task": "digits-cnn"}, "a Sequential of this structure cannot be trained in a pack"),
        ({"space": {**SPACE, "optimizer": ["sgd", "adam"]}}, "pack is 3, but the space has sev"),
        ({"optimizer": "rmsprop"}, "RMSprop cannot train a pack"),
        ({"search": {**PACKED["search"], "pack": "auto", "order": "drawn"}}, "pack is 'auto', wh"),
    ],
)
def test_packs_that_cannot_be_are_refused_before_the_training(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DynoptError, match=message):
        prepare(check_spec({**PACKED, **changes}, source="test"))


def test_own_trials_take_turns_in_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_turns.py").write_text("def run(config):\n    return {'accuracy': config['x']}")
    monkeypatch.syspath_prepend(tmp_path)
    data = {**OWN, "trial": "own_turns:run", "search": {**OWN["search"], "pack": 5}}
    trials = pd.read_csv(run(data, tmp_path / "run") / "results.csv")
    assert (trials["accuracy"] == trials["config.x"]).all()
    assert len(trials) == 12
