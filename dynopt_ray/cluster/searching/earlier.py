"""Trials of earlier searches, from which a searcher learns before it draws."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynopt_ray.cluster.searching.objectives import Objectives
from dynopt_ray.cluster.searching.space import Point, Space
from dynopt_ray.cluster.trials import from_json
from dynopt_ray.errors import RunError, SpecError
from dynopt_ray.journals import RunRecord, lines_at, read_journal

if TYPE_CHECKING:
    from ray.tune.search import Searcher

_log = logging.getLogger("dynopt_ray.search")


@dataclass(frozen=True)
class EarlierTrial:
    """A finished trial of an earlier search.

    Attributes:
        point: its point in the space of the present search.
        row: its final figures. Its utility is that of the present search.
    """

    point: Point
    row: Mapping[str, float]


def earlier_trials(
    places: Sequence[str | os.PathLike[str]], space: Space, *, cost_weight: float
) -> list[EarlierTrial]:
    """Return the finished trials of earlier searches whose configurations are in a space.

    Args:
        places: run directories, or what was the `storage` of searches.
        space: the space of the present search.
        cost_weight: λ of its utility = accuracy − λ · cost.

    Raises:
        SpecError: a place holds no search, or none of its finished trials is in the space.
        RunError: its journal is damaged.
    """
    found: list[EarlierTrial] = []
    for given in places:
        place = os.fspath(given)
        records = _records(place)
        trials = list(_finished(records, space, cost_weight))
        if not trials:
            raise SpecError(
                f"warm_start: {place} has no finished trial whose settings are all in this space"
            )
        _log.info("search: begins with %d trials of %s", len(trials), place)
        found += trials
    return found


def known_trials(records: Sequence[RunRecord]) -> list[EarlierTrial]:
    """Return the earlier trials from which a search that is taken up again has learned."""
    fields = [from_json(record.fields) for record in records if record.kind == "known"]
    return [EarlierTrial(one["point"], one["row"]) for one in fields]


def check_learns(searcher: "Searcher", places: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse to begin with earlier trials if the searcher does not learn from trials.

    Raises:
        SpecError: the message says what to choose instead.
    """
    from dynopt_ray.cluster.searching.searchers import OptunaSearcher

    if places and not isinstance(searcher, OptunaSearcher):
        raise SpecError(
            f"warm_start: {type(searcher).__name__} does not learn from earlier trials; leave it "
            "out, or use the searcher 'optuna'"
        )


def learn_from(
    trials: Sequence[EarlierTrial], searcher: "Searcher", objectives: Objectives
) -> None:
    """Let a searcher learn from the earlier trials that have all figures of the objectives.

    Raises:
        SpecError: all of them lack a figure.
    """
    from dynopt_ray.cluster.searching.searchers import OptunaSearcher

    told = [(trial.point, objectives.values(trial.row)) for trial in trials]
    if trials and not any(values for _, values in told):
        raise SpecError(
            f"warm_start: no earlier trial measured all of {', '.join(objectives.metric)}"
        )
    for point, values in told:
        if values is not None:
            assert isinstance(searcher, OptunaSearcher)  # see `check_learns`
            searcher.learn(point, values)


def _records(place: str) -> Sequence[RunRecord]:
    if "://" not in place and not os.path.exists(os.path.join(place, "journal.jsonl")):
        raise SpecError(f"warm_start: {place} has no journal of a search")
    try:
        records = read_journal(lines_at(place))
    except OSError as error:
        raise RunError(f"warm_start: cannot read {place}: {error}") from error
    if not any(record.kind == "search" for record in records):
        raise SpecError(f"warm_start: {place} is a run, but has no search")
    return records


def _finished(
    records: Sequence[RunRecord], space: Space, cost_weight: float
) -> Iterator[EarlierTrial]:
    # A scheduler may have changed a configuration while the trial ran.
    with_config = [r for r in records if r.kind in ("drawn", "started")]
    configs = {r["trial"]: from_json(r["config"]) for r in with_config}
    rows = {r["trial"]: from_json(r["row"]) for r in records if r.kind == "measured"}
    for record in records:
        if record.kind != "ended" or record["status"] != "finished":
            continue
        number = record["trial"]
        point = space.point_of(configs[number])
        if point is not None:
            row = {name: value for name, value in rows[number].items() if name != "final"}
            row["utility"] = row["accuracy"] - cost_weight * row["cost"]
            yield EarlierTrial(point, row)
