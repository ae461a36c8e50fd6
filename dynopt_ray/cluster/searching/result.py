"""The results of a search, as tables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
            order of increasing cost.
        history: every measurement, with the number of its trial.
        network: the network of `best` in the format of `structure.save`, or None if the
            trials give no networks.
        note: why the search ran fewer trials than it was given, or an empty string.
    """

    trials: "pd.DataFrame"
    best: BestTrial
    pareto: "pd.DataFrame"
    history: "pd.DataFrame"
    highest: BestTrial
    network: bytes | None = None
    note: str = ""


def pareto_front(points: "pd.DataFrame") -> "pd.DataFrame":
    """Return the Pareto front in order of increasing `cost`.

    No other row beats one of these rows in `accuracy` without a higher `cost`. Of rows with the
    same figures, only the first is returned.
    """
    ordered = points.sort_values(["cost", "accuracy"], ascending=[True, False], kind="stable")
    before = ordered["accuracy"].astype(float).cummax().shift(fill_value=-math.inf)
    return ordered[ordered["accuracy"] > before].reset_index(drop=True)


def flat_config(config: Mapping[str, Any], prefix: str = "config") -> dict[str, Any]:
    """Flatten a nested configuration: its dotted names are the columns of a table."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}.{name}"
        flat.update(flat_config(value, key) if isinstance(value, Mapping) else {key: value})
    return flat
