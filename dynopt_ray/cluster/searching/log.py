"""The log of a search: what its trials measured and how they ended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynopt_ray.cluster.searching.choice import Candidate, Winner, chosen
from dynopt_ray.cluster.searching.result import (
    BestTrial,
    SearchResult,
    pareto_front,
)
from dynopt_ray.cluster.trials import KeptNetworks, TrialStatus, flat_config, from_json, rank
from dynopt_ray.errors import SearchError

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class _Record:
    number: int
    config: dict[str, Any]
    status: TrialStatus = "waiting"
    last: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    num_losses: int = 0
    row_scores: list[float] | None = None


class TrialLog:
    """Collects what trials measure and how they end, from the records of a search.

    It needs nothing but the records, so it can also be made from the journal of a search that is
    running elsewhere or has died.

    Args:
        costs: the figures that the Pareto front holds against accuracy.
    """

    def __init__(self, costs: Sequence[str] = ("cost",)) -> None:
        self._records: list[_Record] = []
        self._history: list[dict[str, Any]] = []
        self._costs = tuple(costs)
        self._kept = KeptNetworks(forget=lambda _: None, costs=self._costs)

    def append(self, kind: str, /, **fields: Any) -> None:
        """Take in a record; see `SearchRecords`. Records of other parts of a run are left out."""
        if kind == "drawn":
            self._records.append(_Record(fields["trial"], from_json(fields["config"])))
            return
        if kind not in ("started", "measured", "lost", "ended"):
            return
        record = self._records[fields["trial"]]
        if kind == "started":
            record.status, record.config = "running", from_json(fields["config"])
        elif kind == "measured":
            row = from_json(fields["row"])
            record.last = {name: value for name, value in row.items() if name != "final"}
            record.row_scores = fields["row_scores"]
            self._history.append({"trial": record.number, **record.last})
        elif kind == "lost":
            record.status, record.num_losses = "waiting", record.num_losses + 1
        else:
            record.status, record.error = fields["status"], fields["error"]
            if record.status == "finished":
                self._kept.offer(record.number, record.last, record.row_scores)

    def statuses(self) -> Counter[TrialStatus]:
        """Return the number of trials by status: waiting, running, finished, stopped, failed."""
        return Counter(record.status for record in self._records)

    @property
    def num_losses(self) -> int:
        """How often the process of a trial was lost."""
        return sum(record.num_losses for record in self._records)

    @property
    def best_so_far(self) -> dict[str, Any] | None:
        """The last measurement of the finished trial with the highest utility, or None."""
        done = [r.last for r in self._records if r.status == "finished"]
        return max(done, key=_rank, default=None)

    def winner(self, choice: Winner) -> int | None:
        """Return the number of the finished trial that wins, or None if none has finished.

        Only trials that no other one beats in everything can win, as only their networks are kept.
        """
        found = [_candidate(self._records[number]) for number in self._kept]
        return chosen(found, choice) if found else None

    def result(
        self, network: bytes | None = None, *, choice: Winner = "best", note: str = ""
    ) -> SearchResult:
        """Return the results of the search as tables.

        Args:
            network: the network of the trial that wins, if it gave one.
            choice: which trial wins; see `search`.
            note: what a reader should know about the search.

        Raises:
            SearchError: no trial finished.
        """
        import pandas as pd

        number = self.winner(choice)
        if number is None:
            raise SearchError(_nothing_finished(self._records))
        trials = self.table()
        return SearchResult(
            trials=trials,
            best=_best(self._records[number]),
            highest=_best(self._records[self.winner("best") or 0]),
            pareto=pareto_front(trials[trials["status"] == "finished"], self._costs),
            history=pd.DataFrame(self._history).sort_values(
                "trial", kind="stable", ignore_index=True
            ),
            network=network,
            note=note,
        )

    def table(self) -> "pd.DataFrame":
        """Return one row per trial; see `SearchResult.trials`."""
        import pandas as pd

        return pd.DataFrame([_trial_row(r) for r in self._records])


def _best(record: _Record) -> BestTrial:
    figures = (record.last[name] for name in ("accuracy", "cost", "utility"))
    return BestTrial(record.number, record.config, *figures)


def _candidate(record: _Record) -> Candidate:
    accuracy, cost, utility = (record.last[name] for name in ("accuracy", "cost", "utility"))
    scores = None if record.row_scores is None else np.array(record.row_scores)
    return Candidate(record.number, cost, accuracy - utility, accuracy, scores)


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    return rank(row["utility"], row["cost"])


def _trial_row(record: _Record) -> dict[str, Any]:
    head = {"trial": record.number, "status": record.status}
    return {**head, **flat_config(record.config), **record.last, "error": record.error}


def _nothing_finished(records: list[_Record]) -> str:
    if not records:
        return "no trial was started: the searcher proposed no configuration"
    failed = [r for r in records if r.status == "failed"]
    unfinished = [r for r in records if r.status == "stopped" and r.error]
    if not failed and not unfinished:
        return f"none of {len(records)} trials finished: the scheduler stopped all of them early"
    first = (failed or unfinished)[0]
    counts = f", {len(failed)} failed" if failed else ""
    return (
        f"none of {len(records)} trials finished{counts}. Trial {first.number} with "
        f"{first.config}: {first.error}"
    )
