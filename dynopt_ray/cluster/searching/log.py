"""The log of a search: what its trials measured and how they ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynopt_ray.cluster.searching.result import (
    BestTrial,
    SearchResult,
    flat_config,
    pareto_front,
    rank,
)
from dynopt_ray.cluster.searching.trial import TrialStatus
from dynopt_ray.errors import SearchError


@dataclass
class _Record:
    number: int
    config: dict[str, Any]
    status: TrialStatus = "running"
    last: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class TrialLog:
    """Collects, in the driver's process, what trials measure and how they end."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._history: list[dict[str, Any]] = []

    def start(self, trial_id: str, number: int, config: Mapping[str, Any]) -> None:
        """Record the start of a trial; `number` is its place in the order of drawing, from 0."""
        self._records[trial_id] = _Record(number, dict(config))

    def measure(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """Record a measurement, as a row made by `Measurement.row`."""
        record = self._records[trial_id]
        record.last = {name: value for name, value in row.items() if name != "final"}
        record.status = "finished" if row["final"] else "running"
        self._history.append({"trial": record.number, **record.last})

    def end(self, trial_id: str, *, error: str | None = None, note: str = "") -> None:
        """Record that a trial has failed (if there is an error), finished or stopped early.

        Args:
            trial_id: the trial.
            error: why it failed; None if it did not.
            note: why it stopped early, if no scheduler stopped it.
        """
        record = self._records[trial_id]
        if error is not None:
            record.status, record.error = "failed", error
        elif record.status == "running":
            record.status, record.error = "stopped", note

    def status(self, trial_id: str) -> TrialStatus:
        """Return whether a trial is running, or how it ended."""
        return self._records[trial_id].status

    @property
    def best_so_far(self) -> dict[str, Any] | None:
        """The last measurement of the finished trial with the highest utility, or None."""
        done = [r.last for r in self._records.values() if r.status == "finished"]
        return max(done, key=_rank, default=None)

    def result(self, kept: tuple[str, bytes] | None, *, note: str = "") -> SearchResult:
        """Return the results of the search as tables.

        Args:
            kept: the id and the network of the best trial, as `BestNetwork.kept` returns them.
            note: what a reader should know about the search.

        Raises:
            SearchError: no trial finished.
        """
        import pandas as pd

        records = sorted(self._records.values(), key=lambda record: record.number)
        done = [r for r in records if r.status == "finished"]
        if not done:
            raise SearchError(_nothing_finished(records))
        best = max(done, key=lambda record: (*_rank(record.last), -record.number))
        network = None
        if kept is not None and self._records[kept[0]].status == "finished":
            # Of equally good trials, the best one is the one whose network was kept.
            best, network = self._records[kept[0]], kept[1]
        trials = pd.DataFrame([_trial_row(r) for r in records])
        finished = trials[trials["status"] == "finished"]
        return SearchResult(
            trials=trials,
            best=BestTrial(
                best.number, best.config, *(best.last[k] for k in ("accuracy", "cost", "utility"))
            ),
            pareto=pareto_front(finished),
            history=pd.DataFrame(self._history).sort_values("trial", kind="stable"),
            network=network,
            note=note,
        )


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
