"""The results of a search, as tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class BestTrial:
    """A finished trial that is better than others."""

    trial: int
    config: dict[str, Any]
    accuracy: float
    cost: float
    utility: float


@dataclass(frozen=True)
class SearchResult:
    """The results of a search.

    Attributes:
        trials: one row per trial with the columns `trial` (its number), `status`,
            `config.<name>` for each setting, the `step`, `accuracy`, `cost`, `utility` and
            details of its last measurement, and `error`, which is empty unless it failed or
            ended without a final measurement.
        best: the finished trial that wins; see `search(choice=…)`.
        highest: the finished trial with the highest utility, which `best` may undercut in cost.
        pareto: the finished trials that no other one beats in accuracy without a higher cost, in
            order of increasing cost; see `search(objective=…)` for other costs.
        history: every measurement, with the number of its trial.
        network: the network of `best` in the format of `structure.save`, or None if the
            trials give no networks.
        note: why the search ran fewer trials than it was given, and how many trials it put into a
            pack if that was "auto"; or an empty string.
    """

    trials: "pd.DataFrame"
    best: BestTrial
    pareto: "pd.DataFrame"
    history: "pd.DataFrame"
    highest: BestTrial
    network: bytes | None = None
    note: str = ""


def pareto_front(points: "pd.DataFrame", costs: Sequence[str] = ("cost",)) -> "pd.DataFrame":
    """Return the Pareto front in order of increasing costs.

    No other row beats one of these rows in `accuracy` without being higher in one of the costs. Of
    rows with the same figures, only the first is returned.

    Args:
        points: a table with the columns `accuracy` and `costs`.
        costs: the columns that should be low.
    """
    names = [*costs, "accuracy"]
    ordered = points.sort_values(names, ascending=[*(True for _ in costs), False], kind="stable")
    kept: list[int] = []
    front = np.empty((0, len(names)))
    for place, values in enumerate(ordered[names].to_numpy(dtype=float)):
        row = np.append(values[:-1], -values[-1])
        if not bool((front <= row).all(axis=1).any()):
            kept.append(place)
            front = np.vstack([front, row])
    return ordered.iloc[kept].reset_index(drop=True)
