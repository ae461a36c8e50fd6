"""Predict how searches use clusters that are too large to test here.

A discrete-event simulation of the driver and its slots is fed with what the driver's work costs
here: the time in which the driver handles a measurement, journal included, and the time a call to
a slot takes beside it. It is compared with searches on nodes that are processes on this machine,
and then predicts clusters of up to 1,000 GPUs.

`python -m experiments.benchmarks.cluster_simulation [PLOT]` prints the tables, and draws the
prediction if it is given the path of a picture.
"""

import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simpy
from rich.console import Console
from rich.table import Table

from dynopt_ray.cluster import Measurement, search, session
from dynopt_ray.journals import RunRecord, lines_at, read_journal
from tests.cluster.nodes import running_nodes

NUM_MEASURED, REPORTS = 200, 5
SLOTS_PER_NODE = 4
# Nodes, and the seconds between two measurements of a trial.
CHECKED = ((2, 1.0), (2, 0.2), (4, 1.0), (4, 0.2))
GPUS = (1, 4, 16, 64, 256, 1_000)
# Seconds between two measurements of a trial, and the trials of a pack.
INTERVALS, PACKS = (60.0, 5.0, 0.5), (1, 16)
TRIALS_PER_SLOT = 10
SPACE: Mapping[str, Any] = {"x": {"low": 0.0, "high": 1.0}}


@dataclass(frozen=True)
class Costs:
    """What a measurement costs beside the trial's own work.

    Attributes:
        handle_s: the time in which the driver handles it; it handles one at a time.
        call_s: the time that the call to the slot takes, in which the slot waits.
    """

    handle_s: float
    call_s: float


@dataclass(frozen=True)
class Prediction:
    """What a simulated search did from its first trial until its queue was empty.

    Attributes:
        trials_per_hour: how many trials ended.
        idle: the share of the slots' time in which they did not compute.
        driver_busy: the share of the time in which the driver handled measurements.
    """

    trials_per_hour: float
    idle: float
    driver_busy: float


def simulate(
    costs: Costs, *, slots: int, interval_s: float, reports: int = REPORTS, pack: int = 1
) -> Prediction:
    """Simulate a search whose queue lasts for `TRIALS_PER_SLOT` trials in every place.

    Args:
        costs: what a measurement costs.
        slots: the number of slots.
        interval_s: the seconds of work between two measurements of a slot. All trials of a pack
            are measured at its end.
        reports: the number of measurements of a trial.
        pack: the number of trials of a slot.
    """
    environment = simpy.Environment()
    driver = simpy.Resource(environment, capacity=1)
    worked = handled = 0.0
    empty_at: list[float] = []

    def slot(number: int) -> Generator[simpy.Event, Any, None]:
        nonlocal worked, handled
        # Slots do not begin in the same instant.
        yield environment.timeout(interval_s * number / slots)
        for _ in range(TRIALS_PER_SLOT):
            for _ in range(reports):
                yield environment.timeout(interval_s + costs.call_s)
                worked += interval_s
                with driver.request() as turn:
                    yield turn
                    yield environment.timeout(costs.handle_s * pack)
                handled += costs.handle_s * pack
        empty_at.append(environment.now)

    for number in range(slots):
        environment.process(slot(number))
    environment.run()
    # All slots have as much to do, so the last ones end nearly together.
    total = max(empty_at)
    trials = slots * pack * TRIALS_PER_SLOT
    return Prediction(
        trials_per_hour=3_600 * trials / total,
        idle=1 - worked / (slots * total),
        driver_busy=handled / total,
    )


def measured_costs() -> Costs:
    """Measure the costs with trials that compute nothing, in this process and in one slot."""
    here = _seconds_per_measurement(local=True)
    with session(num_cpus=1):
        there = _seconds_per_measurement(max_concurrent=1)
    return Costs(handle_s=here, call_s=max(0.0, there - here))


def _seconds_per_measurement(**settings: Any) -> float:
    """Return the seconds between two measurements, without those before the second trial."""
    with tempfile.TemporaryDirectory() as folder:
        search(
            Waiting(0.0),
            SPACE,
            num_trials=NUM_MEASURED,
            searcher="random",
            num_reports=REPORTS,
            storage=folder,
            **settings,
        )
        records = read_journal(lines_at(folder))
    at = [record["at"] for record in records if record.kind == "measured"][REPORTS:]
    return (at[-1] - at[0]) / (len(at) - 1)


@dataclass(frozen=True)
class Waiting:
    """A trial that waits and computes nothing.

    Attributes:
        interval_s: the seconds before each measurement.
    """

    interval_s: float

    def __call__(self, config: Mapping[str, Any]) -> Iterator[Measurement]:
        """Measure `REPORTS` times."""
        for report in range(1, REPORTS + 1):
            time.sleep(self.interval_s)
            yield Measurement(report, config["x"], 0.0, final=report == REPORTS)


def checked(costs: Costs) -> Table:
    """Compare predictions with searches on nodes of this machine."""
    table = Table(title="Trials per hour: predicted and measured")
    for column in ("nodes", "slots", "seconds per measurement", "predicted", "measured", "ratio"):
        table.add_column(column)
    for nodes, interval_s in CHECKED:
        slots = nodes * SLOTS_PER_NODE
        predicted = simulate(costs, slots=slots, interval_s=interval_s).trials_per_hour
        measured = _measured(nodes, interval_s)
        table.add_row(
            str(nodes),
            str(slots),
            f"{interval_s:g}",
            f"{predicted:,.0f}",
            f"{measured:,.0f}",
            f"{predicted / measured:.2f}",
        )
    return table


def _measured(num_nodes: int, interval_s: float) -> float:
    """Return the trials per hour of a real search, from when all slots are up."""
    slots = num_nodes * SLOTS_PER_NODE
    # A slot that starts late leaves its share of the queue to the others.
    num_trials = slots * max(TRIALS_PER_SLOT, round(60 / (interval_s * REPORTS)))
    node = {"num_cpus": SLOTS_PER_NODE, "num_gpus": SLOTS_PER_NODE}
    with running_nodes(num_nodes, **node) as nodes, tempfile.TemporaryDirectory() as folder:
        with session(nodes.address):
            search(
                Waiting(interval_s),
                SPACE,
                num_trials=num_trials,
                searcher="random",
                num_reports=REPORTS,
                gpus_per_trial=1,
                storage=folder,
            )
        return _rate(read_journal(lines_at(folder)), slots)


def _rate(records: Sequence[RunRecord], slots: int) -> float:
    """Return the trials that ended per hour, from all slots are up until the queue is empty."""
    first: dict[str, float] = {}
    for record in records:
        if record.kind == "started":
            first.setdefault(record["where"], record["at"])
    assert len(first) == slots, f"{len(first)} of {slots} slots ran trials"
    since = max(first.values())
    until = max(record["at"] for record in records if record.kind == "started")
    ends = sum(since <= record["at"] <= until for record in records if record.kind == "ended")
    return 3_600 * ends / (until - since)


def predicted(costs: Costs) -> Table:
    """Predict larger clusters."""
    table = Table(
        title="Predicted for larger clusters",
        caption="idle: share of the GPUs' time; driver: share of its time that it is busy",
    )
    for column in ("seconds per measurement", "pack", *(f"{gpus:,} GPUs" for gpus in GPUS)):
        table.add_column(column)
    for interval_s in INTERVALS:
        for pack in PACKS:
            cells = []
            for gpus in GPUS:
                one = simulate(costs, slots=gpus, interval_s=interval_s, pack=pack)
                cells.append(
                    f"{one.trials_per_hour:,.0f}/h\nidle {one.idle:.0%}\n"
                    f"driver {one.driver_busy:.0%}"
                )
            table.add_row(f"{interval_s:g}", str(pack), *cells, end_section=pack == PACKS[-1])
    return table


def plot(costs: Costs, path: Path) -> None:
    """Draw the idle share of the GPUs over their number."""
    from matplotlib.figure import Figure

    gpus = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for interval_s, colour in zip(INTERVALS, ("#0072b2", "#d55e00", "#009e73"), strict=True):
        for pack, style in zip(PACKS, ("-", "--"), strict=True):
            idle = [
                100 * simulate(costs, slots=n, interval_s=interval_s, pack=pack).idle for n in gpus
            ]
            name = f"{interval_s:g} s per measurement" + (f", packs of {pack}" if pack > 1 else "")
            axes.plot(gpus, idle, style, color=colour, label=name)
    axes.set(xscale="log", xlabel="GPUs", ylabel="idle share of the GPUs, %", ylim=(0, 100))
    axes.grid(color="#dddddd")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(path: str | None = None) -> None:
    """Measure the costs, check the simulation, and predict."""
    console = Console(width=120)
    costs = measured_costs()
    console.print(
        f"The driver handles a measurement in {1000 * costs.handle_s:.2f} ms; a call takes "
        f"{1000 * costs.call_s:.2f} ms more."
    )
    console.print(checked(costs))
    console.print(predicted(costs))
    if path is not None:
        plot(costs, Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
