"""`kind: adapt` with a policy that cuts the network once."""

from pathlib import Path
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

from dynopt_ray.errors import SpecError
from dynopt_ray.runs.kinds.registry import prepare
from dynopt_ray.runs.loading import check_spec
from tests.runs.test_run_runners import ADAPT, accuracy_of, rows, run, table


@pytest.mark.parametrize(
    "policy", ["ladder_cut", "allocated_cut", {"name": "single_cut", "remove_units": 0.75}]
)
def test_adapt_follows_a_policy_that_cuts_once(tmp_path: Path, policy: Any) -> None:
    directory = run({**ADAPT, "policy": policy, "cost_weight": 0.3}, tmp_path / "a")
    history, cuts = table(directory, "results"), table(directory, "cuts")
    assert history["step"].tolist() == [0, 4]
    assert history["action"].iloc[1] == cuts.loc[cuts["chosen"], "cut"].item()
    summary = rows(directory, "summary")
    assert summary["after"]["nonzero"] < 0.5 * summary["before"]["nonzero"]
    assert summary["after"]["utility"] == pytest.approx(history["utility"].iloc[1])
    assert accuracy_of(directory) == summary["after"]["accuracy"]
    curves = table(directory, "curves")
    assert curves["step"].iloc[-1] == 120 + 4 * 5
    assert table(directory, "widths")["decision"].tolist() == [0, 4]


def test_the_training_of_all_decisions_follows_the_cut(tmp_path: Path) -> None:
    taken: list[int] = []
    hook = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    try:
        run({**ADAPT, "policy": "ladder_cut"}, tmp_path / "a")
    finally:
        hook.remove()
    assert len(taken) == 120 + 4 * 5


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"name": "single_cut"}, "give remove_units, remove_weights or both"),
        ({"name": "single_cut", "remove_unit": 0.5}, "Did you mean 'remove_units'"),
    ],
)
def test_arguments_of_a_policy_are_checked_with_the_spec(policy: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec({**ADAPT, "policy": policy}, source="test")


def test_a_misspelt_policy_is_named() -> None:
    spec = check_spec({**ADAPT, "policy": "lader_cut"}, source="test")
    with pytest.raises(SpecError, match=r"there is no lader_cut\. Did you mean 'ladder_cut'"):
        prepare(spec)
