"""Searches for a Pareto front of several figures."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynopt_ray.cluster import Measurement, pareto_front, search
from dynopt_ray.errors import SearchError
from dynopt_ray.journals import read_journal
from dynopt_ray.journals.lines import lines_at

SPACE = {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}


def two_costs(config: Any) -> Any:
    """Accuracy costs flops by x and parameters by y; the best trade-offs have y = 1 - x."""
    x, y = config["x"], config["y"]
    waste = abs(1 - x - y)
    figures = {"flops": x + waste, "params": y + waste, "cost": (x + y) / 2}
    yield Measurement(1, accuracy=math.sqrt(x * y), details=figures | {"cost": 0}, cost=0.5)
    yield {"step": 2, "accuracy": math.sqrt(x * y), "final": True, **figures}


def one_cost(config: Any) -> Any:
    """Only x = y is on the front."""
    x, y = config["x"], config["y"]
    return {"accuracy": x - abs(x - y), "cost": x, "network": lambda: repr(x).encode()}


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=30))
def test_the_front_is_what_nothing_beats(rows: list[tuple[int, int, int]]) -> None:
    points = pd.DataFrame(rows, columns=["accuracy", "flops", "params"])
    front = pareto_front(points, ["flops", "params"])
    found = {tuple(row) for row in front.itertuples(index=False)}

    def beaten(row: tuple[int, ...]) -> bool:
        return any(
            other != row and other[0] >= row[0] and other[1] <= row[1] and other[2] <= row[2]
            for other in rows
        )

    assert found == {row for row in rows if not beaten(row)}
    assert len(front) == len(found)


def test_the_searcher_looks_along_the_front() -> None:
    distances: dict[str, list[float]] = {"random": [], "optuna": []}
    for seed, (searcher, found) in itertools.product(range(3), distances.items()):
        result = search(
            one_cost,
            SPACE,
            num_trials=80,
            searcher=searcher,
            objective="pareto",
            local=True,
            seed=seed,
        )
        late = result.trials.iloc[40:]
        found.append((late["config.x"] - late["config.y"]).abs().mean())
        # The front reaches from cheap to accurate trials, not only to those of one trade-off.
        assert result.pareto["cost"].min() < 0.2 < 0.7 < result.pareto["cost"].max()
    assert sum(distances["optuna"]) < 0.8 * sum(distances["random"])


def test_networks_of_the_whole_front_are_kept(tmp_path: Path) -> None:
    result = search(
        one_cost, SPACE, num_trials=20, objective="pareto", local=True, storage=tmp_path / "s"
    )
    for trial, x in result.pareto[["trial", "config.x"]].itertuples(index=False):
        network = tmp_path / "s" / "trials" / f"{trial:05d}" / "network.safetensors"
        assert float(network.read_text()) == x
    assert result.network is not None


def test_any_figures_may_be_costs(tmp_path: Path) -> None:
    objective = ["accuracy", "flops", "params"]
    found = search(
        two_costs, SPACE, num_trials=25, objective=objective, local=True, storage=tmp_path / "s"
    )
    rows = found.trials[["accuracy", "flops", "params"]].to_numpy()
    for row in found.pareto[["accuracy", "flops", "params"]].to_numpy():
        signs = np.array([1, -1, -1])
        assert not ((rows * signs >= row * signs).all(1) & (rows != row).any(1)).any()
    # A search that is called again finds the same without running a trial.
    again = search(
        two_costs, SPACE, num_trials=25, objective=objective, local=True, storage=tmp_path / "s"
    )
    pd.testing.assert_frame_equal(again.pareto, found.pareto, check_exact=True)
    records = read_journal(lines_at(str(tmp_path / "s")))
    assert sum(record.kind == "drawn" for record in records) == 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "front"}, "objective is 'front'; it must be 'utility', 'pareto', or a list"),
        ({"objective": ["flops"]}, "a list names 'accuracy' and"),
        ({"objective": ["accuracy"]}, "a list names 'accuracy' and"),
        ({"objective": ["accuracy", "cost", "cost"]}, "once each"),
        ({"objective": "pareto", "scheduler": "asha"}, "compares trials by one figure"),
        ({"objective": "pareto", "scheduler": "pbt"}, "compares trials by one figure"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(one_cost, SPACE, num_trials=2, local=True, **arguments)


def test_a_figure_that_trials_do_not_measure_is_named() -> None:
    with pytest.raises(SearchError, match=r"measured no 'flop'.* Did you mean 'flops'\?"):
        search(two_costs, SPACE, num_trials=2, local=True, objective=["accuracy", "flop"])
