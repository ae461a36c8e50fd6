"""The tables of a search while it runs, and from the journal of one that died."""

import time

import pandas as pd

from dynopt_ray.cluster import TrialLog
from dynopt_ray.runs.directory import RunDirectory

_EVERY_S = 10.0


class SearchTables:
    """Writes the tables of a search from time to time.

    Args:
        directory: the directory of the run.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._written_at = -float("inf")

    def update(self, log: TrialLog) -> None:
        """Write the tables, unless the last time was only a moment ago."""
        if time.monotonic() - self._written_at >= _EVERY_S:
            write(self._directory, log)
            self._written_at = time.monotonic()


def write(directory: RunDirectory, log: TrialLog) -> None:
    """Write results.csv, and the points of the chart of accuracy and cost."""
    trials = log.table()
    directory.write_results(trials)
    if not trials.empty:
        directory.write_table("pareto", trial_points(trials))


def rebuild(directory: RunDirectory) -> None:
    """Write the tables of a run from its journal.

    Raises:
        RunError: the journal is damaged.
    """
    log = TrialLog()
    for record in directory.records:
        log.append(record.kind, **record.fields)
    write(directory, log)


def trial_points(trials: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy and cost of the finished trials, as points of a chart."""
    done = trials[trials["status"] == "finished"]
    name = "#" + done["trial"].astype(str)
    columns = {n: done[n] if n in done else pd.Series(dtype=float) for n in ("cost", "accuracy")}
    return pd.DataFrame({"series": "trials", "name": name, **columns})
