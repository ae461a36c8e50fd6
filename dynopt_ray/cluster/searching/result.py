"""What a search found, as tables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class BestTrial:
    """The finished trial with the highest utility."""

    trial: int
    config: dict[str, Any]
    accuracy: float
    cost: float
    utility: float


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        trials: one row per trial: `trial` (its number), `status`, a column `config.<name>` per
            setting, `step`, `accuracy`, `cost`, `utility` and details of its last measurement,
            and `error` where it failed.
        best: the finished trial of the highest utility.
        pareto: the finished trials that no other beats in accuracy without costing more, by
            rising cost.
        history: every measurement, with its trial's number.
        network: the best trial's network as `structure.save` wrote it, or None where trials
            give none.
    """

    trials: "pd.DataFrame"
    best: BestTrial
    pareto: "pd.DataFrame"
    history: "pd.DataFrame"
    network: bytes | None = None


def rank(utility: float, cost: float) -> tuple[float, float]:
    """The order of trials: the higher the better; of equal utilities the cheaper."""
    return utility, -cost


class BestNetwork:
    """Keeps one network: that of the best trial so far. An actor when trials run on a cluster."""

    def __init__(self) -> None:
        self._rank = (-math.inf, -math.inf)
        self._kept: tuple[str, bytes] | None = None

    def wants(self, utility: float, cost: float) -> bool:
        """Whether a network of such figures would be kept."""
        return rank(utility, cost) > self._rank

    def offer(self, trial_id: str, utility: float, cost: float, network: bytes) -> None:
        """Keep it, unless a better one came in between."""
        if self.wants(utility, cost):
            self._rank, self._kept = rank(utility, cost), (trial_id, network)

    def kept(self) -> tuple[str, bytes] | None:
        """The trial's id and its network."""
        return self._kept


def pareto_front(points: "pd.DataFrame") -> "pd.DataFrame":
    """The rows that no other row beats: higher `accuracy` needs higher `cost`. By rising cost."""
    ordered = points.sort_values(["cost", "accuracy"], ascending=[True, False], kind="stable")
    before = ordered["accuracy"].astype(float).cummax().shift(fill_value=-math.inf)
    return ordered[ordered["accuracy"] > before].reset_index(drop=True)


def flat_config(config: Mapping[str, Any], prefix: str = "config") -> dict[str, Any]:
    """A nested configuration with dotted names, as the columns of a table."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}.{name}"
        flat.update(flat_config(value, key) if isinstance(value, Mapping) else {key: value})
    return flat
