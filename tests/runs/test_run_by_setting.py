"""The table of settings: means over seeds, and only the settings that differ."""

import numpy as np
import pandas as pd
import pytest

from dynopt_ray.cluster.trials import flat_config
from dynopt_ray.runs.report.charts import CHARTS, figure
from dynopt_ray.runs.report.settings_table import by_setting

COSINE = {"name": "cosine", "initial": 0.1}
SEQUENCE = {"name": "sequence", "milestones": [5, 9], "schedule": COSINE}
STEPS = [{"name": "step", "initial": 0.2, "gamma": gamma} for gamma in (0.5, 0.9)]
CONFIGS = [
    {"lr": lr, "recovery": recovery, "rounds": 1 if recovery else 2, "fixed": 7, "seed": seed}
    for lr in (COSINE, *STEPS, SEQUENCE, 0.3)
    for recovery in (None, "greedy")
    for seed in (0, 1)
]


def trials() -> pd.DataFrame:
    rows = []
    for number, config in enumerate(CONFIGS):
        figures = {"accuracy": 0.9 - 0.01 * number, "cost": 0.5, "utility": 0.8}
        rows.append({"trial": number, "status": "finished", **flat_config(config), **figures})
    return pd.DataFrame(rows)


def test_seeds_become_means_and_deviations() -> None:
    table = by_setting(trials())
    assert table is not None
    assert list(table) == [
        *("lr", "recovery"),
        *("trials", "accuracy", "accuracy_sd", "cost", "utility"),
    ]
    assert len(table) == 10
    assert set(table["trials"]) == {2}
    best = table.iloc[0]
    assert (best["lr"], best["recovery"]) == ("cosine", "none")
    assert best["accuracy"] == pytest.approx(0.895)
    assert best["accuracy_sd"] == pytest.approx(0.01 / np.sqrt(2))
    options = ["cosine", "step (gamma 0.5)", "step (gamma 0.9)", "sequence", "0.3"]
    assert table["lr"].tolist() == [option for option in options for _ in range(2)]


def test_failed_trials_are_left_out_of_the_means() -> None:
    some = trials()
    failed = some["trial"].isin([0, 2, 3])
    some["status"] = some["status"].mask(failed, "failed")
    some["accuracy"] = some["accuracy"].mask(failed)
    table = by_setting(some)
    assert table is not None
    cosine = table[table["lr"] == "cosine"].set_index("recovery")
    assert cosine.loc["none", "trials"] == 1
    assert cosine.loc["none", "accuracy"] == pytest.approx(0.89)
    assert cosine.loc["greedy", "trials"] == 0
    assert cosine["accuracy"].isna().tolist() == [False, True]


def test_without_several_seeds_and_settings_there_is_no_table() -> None:
    some = trials()
    assert by_setting(some[some["config.seed"] == 0]) is None
    assert by_setting(some.drop(columns="config.seed")) is None
    assert by_setting(some[:2]) is None


def test_the_chart_has_a_row_per_option_and_a_colour_per_combination_of_the_others() -> None:
    table = by_setting(trials())
    assert table is not None
    with figure(CHARTS["settings"], table) as drawn:
        axes = drawn.axes[0]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == ["0.3", "sequence", "step (gamma 0.9)", "step (gamma 0.5)", "cosine"]
        assert [bars.get_label() for bars in axes.containers] == ["none", "greedy"]


def test_a_failed_configuration_does_not_squeeze_the_rest_of_the_chart() -> None:
    table = by_setting(trials())
    assert table is not None
    with figure(CHARTS["settings"], table) as drawn:
        left = drawn.axes[0].get_xlim()[0]
        assert left < table["accuracy"].min()
        assert drawn.axes[0].get_xlabel() == "accuracy (mean ± sd over seeds)"
    table.loc[table.index[-1], "accuracy"] = -5.0
    table.loc[table.index[-2], "accuracy"] = np.nan
    with figure(CHARTS["settings"], table) as drawn:
        axes = drawn.axes[0]
        assert 0 < axes.get_xlim()[0] < table["accuracy"][:-2].min()
        marks = [np.size(line.get_xdata()) for line in axes.lines if line.get_marker() == "<"]
        assert sorted(marks) == [0, 1]
        assert "◂ below 0." in axes.get_xlabel()
