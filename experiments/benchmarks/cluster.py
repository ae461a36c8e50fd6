"""Measure what a search on a cluster costs beside its trials, and that kills cost little.

`python -m experiments.benchmarks cluster` runs all parts but the soak; the parts are

- overhead: time per trivial trial with a journal, of plain Tune with reused actors
- functions: time per trial of 10,000 functions, many to an actor
- busy: share of 16 slots on 4 nodes that are busy while 128 trials wait in a queue
- pbt: population based training against the best fixed rate, where the best rate changes
- soak: 200 pruning trials with 20 kills; see `cluster_soak`

`python -m experiments.benchmarks.cluster PART …` runs only the named parts. Nodes are processes on
this machine, and their GPUs exist on paper only.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dynopt_ray.cluster import Measurement, search, session
from dynopt_ray.journals import lines_at, read_journal
from experiments.benchmarks import cluster_pbt, cluster_soak
from tests.cluster.nodes import running_nodes

NUM_TRIVIAL, REPETITIONS = 200, 3
NUM_FUNCTIONS, FUNCTIONS_PER_SLOT = 10_000, 64
NUM_NODES, GPUS_PER_NODE, NUM_WAITING, WAIT_S = 4, 4, 128, 5.0
SPACE: Mapping[str, Any] = {"x": {"low": 0.0, "high": 1.0}}


def main(parts: Sequence[str] = ("overhead", "functions", "busy", "pbt")) -> None:
    """Measure, and print a table for each part."""
    for part in parts:
        Console(width=110).print(PARTS[part]())


def trivial(config: Mapping[str, Any]) -> dict[str, float]:
    """A trial that computes nothing."""
    return {"accuracy": config["x"]}


def overhead() -> Table:
    """Compare the time per trivial trial with that of plain Tune, alternated in one session."""
    ours, theirs = [], []
    with session(num_cpus=2):
        for _ in range(REPETITIONS):
            theirs.append(1000 * _between_ends(_with_tune))
            ours.append(1000 * _between_ends(_with_journal))
    table = Table(
        title=f"Time per trivial trial, {NUM_TRIVIAL} trials, {REPETITIONS} repetitions",
        caption="from the first end of a trial to the last, so without the start of processes",
    )
    for column in ("", "ms per trial: median", "from", "to"):
        table.add_column(column)
    for name, times in (("search, with a journal", ours), ("Tune, reused actors", theirs)):
        figures = (statistics.median(times), min(times), max(times))
        table.add_row(name, *(f"{figure:.1f}" for figure in figures))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    figures = (statistics.median(ratios), min(ratios), max(ratios))
    table.add_row("ratio", *(f"{figure:.2f}" for figure in figures))
    return table


def _between_ends(run: Callable[[Callable[[], None]], None]) -> float:
    """Return the mean time between the ends of trials, in seconds."""
    ends: list[float] = []
    run(lambda: ends.append(time.monotonic()))
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _with_journal(on_end: Callable[[], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        search(
            trivial,
            SPACE,
            num_trials=NUM_TRIVIAL,
            searcher="random",
            storage=folder,
            on_end=lambda _: on_end(),
        )


def _with_tune(on_end: Callable[[], None]) -> None:
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # else Tune prints every result
    from ray import tune

    class Ends(tune.Callback):
        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            on_end()

    def report(config: dict[str, Any]) -> None:
        tune.report(trivial(config))

    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            report,
            param_space={"x": tune.uniform(0.0, 1.0)},
            tune_config=tune.TuneConfig(num_samples=NUM_TRIVIAL, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[Ends()]),
        ).fit()


def functions() -> Table:
    """Measure the time per trial of functions that share actors, the start included."""
    with session(num_cpus=2), tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        result = search(
            trivial,
            SPACE,
            num_trials=NUM_FUNCTIONS,
            searcher="random",
            pack=FUNCTIONS_PER_SLOT,
            storage=folder,
        )
        taken = time.monotonic() - begun
        size = (Path(folder) / "journal.jsonl").stat().st_size
    assert (result.trials["status"] == "finished").sum() == NUM_FUNCTIONS
    table = Table(title=f"{NUM_FUNCTIONS:,} functions as trials, {FUNCTIONS_PER_SLOT} to a slot")
    for column in ("ms per trial, with the start", "journal, bytes per trial"):
        table.add_column(column)
    table.add_row(f"{1000 * taken / NUM_FUNCTIONS:.2f}", f"{size / NUM_FUNCTIONS:.0f}")
    return table


def waiting(config: Mapping[str, Any]) -> Iterator[Measurement]:
    """A trial that notes when it begins and ends."""
    begun = time.time()
    time.sleep(WAIT_S)
    yield Measurement(
        1, config["x"], 0.0, final=True, details={"begun": begun, "ended": time.time()}
    )


def busy() -> Table:
    """Measure the share of slots that are busy while trials are left in the queue."""
    node = {"num_cpus": GPUS_PER_NODE, "num_gpus": GPUS_PER_NODE}
    with running_nodes(NUM_NODES, **node) as nodes, tempfile.TemporaryDirectory() as folder:
        with session(nodes.address):
            result = search(
                waiting,
                SPACE,
                num_trials=NUM_WAITING,
                searcher="random",
                gpus_per_trial=1,
                storage=folder,
            )
        records = read_journal(lines_at(folder))
    num_slots = NUM_NODES * GPUS_PER_NODE
    share, begun, ended = busy_share(result.trials, records, num_slots)
    table = Table(title=f"{NUM_WAITING} trials that wait {WAIT_S:g} s, {NUM_NODES} nodes")
    for column in ("slots", "all up after", "queue empty after", "busy in between"):
        table.add_column(column)
    first = result.trials["begun"].min()
    table.add_row(
        str(num_slots), f"{begun - first:.1f} s", f"{ended - first:.1f} s", f"{share:.1%}"
    )
    return table


def busy_share(trials: Any, records: Sequence[Any], num_slots: int) -> tuple[float, float, float]:
    """Return the share of slots that are busy, and between which times it was taken.

    It is taken from when every slot has begun a trial until the last trial begins.
    """
    first: dict[str, float] = {}
    for record in records:
        if record.kind == "started":
            begun = float(trials["begun"][record["trial"]])
            first[record["where"]] = min(begun, first.get(record["where"], begun))
    assert len(first) == num_slots, f"{len(first)} slots ran trials"
    since, until = max(first.values()), float(trials["begun"].max())
    used = trials["ended"].clip(since, until) - trials["begun"].clip(since, until)
    return float(used.sum()) / (num_slots * (until - since)), since, until


PARTS: Mapping[str, Callable[[], Table]] = {
    "overhead": overhead,
    "functions": functions,
    "busy": busy,
    "pbt": cluster_pbt.pbt,
    "soak": cluster_soak.large,
}


if __name__ == "__main__":
    main(sys.argv[1:] or tuple(PARTS))
