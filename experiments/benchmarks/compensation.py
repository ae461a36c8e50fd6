"""Measure compensation: passes through the network, time, memory and error, for several depths.

`python -m experiments.benchmarks.compensation --baseline CHECKOUT` compares with the library in
another checkout of this repository. Both run in turn, each in processes of its own.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmarks.environments import ROOT, run_from
from experiments.benchmarks.one_compensation import CASES

NUM_RUNS = 3
HERE, BASELINE = "this version", "baseline"
COLUMNS = ("network", "version", "refitted", "passes", "CPU s", "MiB", "error", "without")


def main(arguments: Sequence[str] = ()) -> None:
    """Measure all cases, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, help="another checkout of this repository")
    baseline = parser.parse_args(arguments).baseline
    checkouts = {HERE: ROOT} if baseline is None else {HERE: ROOT, BASELINE: baseline}
    table = Table(
        title=f"Halve every width with compensation: medians of {NUM_RUNS} runs",
        caption="refitted: weights. passes: forward passes per batch. CPU s: on one core. MiB: "
        "peak memory above that before the cut. error: mean squared error of the outputs on a "
        "batch that was not used, relative to their variance; without: the same without "
        "compensation.",
    )
    for column in COLUMNS:
        table.add_column(column)
    for case in CASES:
        for version, found in measured(case, checkouts).items():
            table.add_row(case, version, *cells(found))
    Console(width=110).print(table)


def measured(case: str, checkouts: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Return the medians of the figures of each version, which run in turn."""
    runs: dict[str, list[dict[str, Any]]] = {version: [] for version in checkouts}
    for _ in range(NUM_RUNS):
        for version, checkout in checkouts.items():
            runs[version].append(run_from(checkout, "one_compensation", case))
    return {
        version: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for version, found in runs.items()
    }


def cells(found: Mapping[str, float]) -> list[str]:
    """Format the figures of one version."""
    return [
        f"{found['refitted']:.0f}",
        f"{found['passes']:.1f}",
        f"{found['seconds']:.2f}",
        f"{found['peak_bytes'] / 2**20:.0f}",
        f"{found['error']:.3g}",
        f"{found['error_uncompensated']:.3g}",
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
