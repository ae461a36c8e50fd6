"""What trials say while they run, and the tables made of it. Nothing here imports Ray."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dynopt_ray.cluster.space import Space
from dynopt_ray.errors import DivergedError, SearchError
from dynopt_ray.policies.utility import utility

if TYPE_CHECKING:
    import pandas as pd
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

Status = Literal["running", "finished", "stopped", "failed"]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """How a trial is doing.

    Attributes:
        step: optimizer steps so far.
        accuracy: the task's metric on validation data; larger is better.
        cost: the network's cost relative to where it started.
        final: whether this is the trial's last measurement. Trials that end without one were
            stopped early.
        details: more figures for the tables, such as the loss.
        network: what gives the network as `structure.save` writes it. It is called once, at the
            final measurement, and only if no trial before was better.
    """

    step: int
    accuracy: float
    cost: float
    final: bool = False
    details: Mapping[str, float] = field(default_factory=dict)
    network: Callable[[], bytes] | None = None

    def row(self, cost_weight: float) -> dict[str, Any]:
        """The figures, with utility = accuracy − cost_weight · cost.

        Raises:
            DivergedError: accuracy or cost is not finite.
        """
        figures = {"accuracy": float(self.accuracy), "cost": float(self.cost)}
        for name, value in figures.items():
            if not math.isfinite(value):
                raise DivergedError(f"the {name} is {value} at step {self.step}")
        return {
            "step": self.step,
            **figures,
            "utility": utility(figures["accuracy"], figures["cost"], cost_weight),
            **self.details,
            "final": self.final,
        }


class Trial(Protocol):
    """What is searched over: a configuration in, measurements out.

    It must pickle (with cloudpickle), and depend on nothing but its own fields and the
    configuration. A trial may have `check(config)`, which raises `SpecError` for a
    configuration that it cannot run; it is called for a few that cover the space before
    anything starts.
    """

    def __call__(self, config: Config) -> Iterator[Measurement]:
        """Run one trial. It may be abandoned after any measurement."""


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


class BestNetwork:
    """Keeps one network: that of the best trial so far. An actor when trials run on a cluster."""

    def __init__(self) -> None:
        self._key = (-math.inf, -math.inf)
        self._kept: tuple[str, bytes] | None = None

    def wants(self, utility: float, cost: float) -> bool:
        """Whether a network of such figures would be kept."""
        return (utility, -cost) > self._key

    def offer(self, trial_id: str, utility: float, cost: float, network: bytes) -> None:
        """Keep it, unless a better one came in between."""
        if self.wants(utility, cost):
            self._key, self._kept = (utility, -cost), (trial_id, network)

    def kept(self) -> tuple[str, bytes] | None:
        """The trial's id and its network."""
        return self._kept


def measured(
    trial: Trial,
    config: Config,
    cost_weight: float,
    keep: Callable[[float, float, Callable[[], bytes]], None],
) -> Iterator[dict[str, Any]]:
    """The rows of a trial's measurements; the network of the final one is offered to `keep`.

    Args:
        trial: what runs.
        config: its configuration.
        cost_weight: λ.
        keep: takes utility, cost and what gives the network.

    Raises:
        DivergedError: a figure is not finite.
    """
    for measurement in trial(config):
        row = measurement.row(cost_weight)
        if measurement.final and measurement.network is not None:
            keep(row["utility"], row["cost"], measurement.network)
        yield row
        if measurement.final:
            return


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """What a search is made of, wherever its trials run.

    Attributes:
        trial: what runs.
        space: what it may be given.
        num_trials: trials in all.
        cost_weight: λ.
        searcher: draws configurations.
        scheduler: stops trials early, or None.
        on_end: called with the log whenever a trial has ended.
        log: collects what trials say.
    """

    trial: Trial
    space: Space
    num_trials: int
    cost_weight: float
    searcher: "Searcher"
    scheduler: "TrialScheduler | None"
    on_end: Callable[["TrialLog"], None]
    log: "TrialLog"


@dataclass
class _Record:
    number: int
    config: dict[str, Any]
    status: Status = "running"
    last: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class TrialLog:
    """Collects what trials say, on the driver."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._history: list[dict[str, Any]] = []

    def start(self, trial_id: str, number: int, config: Mapping[str, Any]) -> None:
        """A trial begins; `number` counts them in the order in which they were drawn."""
        self._records[trial_id] = _Record(number, dict(config))

    def measure(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """A trial says how it is doing."""
        record = self._records[trial_id]
        record.last = {name: value for name, value in row.items() if name != "final"}
        record.status = "finished" if row["final"] else "running"
        self._history.append({"trial": record.number, **record.last})

    def end(self, trial_id: str, *, error: str | None = None) -> None:
        """A trial has ended: finished, stopped early or failed."""
        record = self._records[trial_id]
        if error is not None:
            record.status, record.error = "failed", error
        elif record.status == "running":
            record.status = "stopped"

    def status(self, trial_id: str) -> Status:
        """How a trial is or ended."""
        return self._records[trial_id].status

    @property
    def best_so_far(self) -> dict[str, Any] | None:
        """The last measurement of the finished trial with the highest utility."""
        done = [r.last for r in self._records.values() if r.status == "finished"]
        return max(done, key=lambda row: (row["utility"], -row["cost"]), default=None)

    def result(self, kept: tuple[str, bytes] | None) -> SearchResult:
        """The tables.

        Args:
            kept: what `BestNetwork` kept.

        Raises:
            SearchError: no trial finished.
        """
        import pandas as pd

        records = sorted(self._records.values(), key=lambda record: record.number)
        done = [r for r in records if r.status == "finished"]
        if not done:
            raise SearchError(_nothing_finished(records))
        best = max(done, key=lambda r: (r.last["utility"], -r.last["cost"], -r.number))
        network = None
        if kept is not None and self._records[kept[0]].status == "finished":
            # Where two trials are equally good, the best is the one whose network was kept.
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
        )


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


def _trial_row(record: _Record) -> dict[str, Any]:
    head = {"trial": record.number, "status": record.status}
    return {**head, **flat_config(record.config), **record.last, "error": record.error}


def _nothing_finished(records: list[_Record]) -> str:
    failed = [r for r in records if r.status == "failed"]
    if not failed:
        return f"none of {len(records)} trials finished: the scheduler stopped all of them early"
    first = failed[0]
    return (
        f"none of {len(records)} trials finished, {len(failed)} failed. Trial {first.number} with "
        f"{first.config}: {first.error}"
    )
