"""Curves are drawn so that few groups and many can be told apart."""

import doctest
import importlib
import io
import sys
from typing import Any

import matplotlib
import pandas as pd
import pytest

from dynopt_ray.training import plot_sensitivity


def curves_of(number: int) -> pd.DataFrame:
    rows = [(f"block{n}", f, 0.9 - f**2 * n / 50) for n in range(number) for f in (0.0, 0.5, 0.9)]
    return pd.DataFrame(rows, columns=["group", "remove_fraction", "metric"])


def test_few_groups_are_named_and_many_shaded_by_depth() -> None:
    few, many = plot_sensitivity(curves_of(3)), plot_sensitivity(curves_of(50))
    axes = few.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["block0", "block1", "block2", "as it is"]
    assert len(few.axes) == 1
    last: Any = axes.lines[2].get_xydata()
    assert last.tolist() == [[0, 0.9], [0.5, 0.89], [0.9, 0.9 - 0.81 / 25]]
    axes, bar = many.axes
    assert len({str(line.get_color()) for line in axes.lines[:50]}) == 50
    named = [label.get_text() for label in bar.get_yticklabels()]
    assert named[0] == "block0"
    assert named[-1] == "block49"
    for figure in (few, many):
        picture = io.BytesIO()
        figure.savefig(picture)
        assert picture.getvalue().startswith(b"\x89PNG")


def test_plotting_leaves_pyplot_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    for number in (1, 9):
        plot_sensitivity(curves_of(number))


def test_what_is_no_table_of_curves_is_not_drawn() -> None:
    with pytest.raises(TypeError, match="curves has no column 'metric'; pass what sensitivity"):
        plot_sensitivity(curves_of(2).drop(columns="metric"))
    with pytest.raises(TypeError, match="curves has no column 'group'"):
        plot_sensitivity(None)  # type: ignore[arg-type]


def test_the_example_in_the_docstring_runs() -> None:
    results = doctest.testmod(importlib.import_module("dynopt_ray.training.allocation.plots"))
    assert results.attempted
    assert not results.failed
