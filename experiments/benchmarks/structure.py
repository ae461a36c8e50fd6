"""Compare resizing with Torch-Pruning: supported networks, exactness, speed and memory.

Both libraries are measured in the same run and in alternation, each in its own process.
torchvision's models are built without trained weights, so nothing is downloaded.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmarks.environments import run_lines, run_peer, run_script
from experiments.benchmarks.optimizer_steps import optimizer_table

VISION = ".venv-peers-vision"
TIMED = {"resnet50": 0.5, "vit_b_16": 0.5, "densenet121": 0.2, "swin_t": None}
"""Model -> the goal as a share of Torch-Pruning's time; None if that library cannot prune it."""
TURNS, RUNS = 3, 3
NUM_GROUPS = (1000, 2000, 5000, 10_000)

Row = dict[str, Any]


def main() -> None:
    """Run all parts, and print their tables."""
    console = Console(width=100)
    console.print(time_table())
    console.print(scale_table())
    console.print(llama_table())
    console.print(optimizer_table())
    ours = run_lines(VISION, "torchvision_models")
    console.print(coverage_table("torchvision", ours))
    console.print(peer_table([row["model"] for row in ours]))
    console.print(coverage_table("timm and Hugging Face", run_lines(VISION, "hub_models")))


def time_table() -> Table:
    """Measure tracing and halving every width with both libraries, in alternation."""
    table = Table(
        title=f"Trace + halve every width ({TURNS} times {RUNS} runs in alternation, one thread)"
    )
    for column in ("model", "dynopt_ray", "Torch-Pruning", "ratio", "goal"):
        table.add_column(column)
    table.add_column("peak memory / model size\n(ours, theirs; a forward pass)")
    for model, asked in TIMED.items():
        results: dict[str, list[Row]] = {"dynopt_ray": [], "torch_pruning": []}
        for _ in range(TURNS):
            for library, rows in results.items():
                rows.append(run_peer(VISION, "resize_times", library, model, str(RUNS)))
        ours, theirs = (
            [run for row in rows if row["works"] for run in row["runs"]]
            for rows in results.values()
        )
        row = [model, spread_s(ours), spread_s(theirs) if theirs else "out of memory"]
        ratio = median(ours, "seconds") / median(theirs, "seconds") if theirs else None
        row += [f"{ratio:.2f}" if ratio else "-", f"≤ {asked}" if asked else "works"]
        peaks = [f"{median(runs, 'memory'):.2f}" for runs in (ours, theirs) if runs]
        forward = statistics.median(m for r in results["dynopt_ray"] for m in r["forward_memory"])
        table.add_row(*row, f"{', '.join(peaks)}; {forward:.2f}")
    return table


def median(runs: Sequence[Row], figure: str) -> float:
    """Return the median of a figure over all runs."""
    return statistics.median(run[figure] for run in runs)


def spread_s(runs: Sequence[Row]) -> str:
    """Format the median (smallest to largest) seconds."""
    seconds = [run["seconds"] for run in runs]
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"


def scale_table() -> Table:
    """Measure tracing and halving chains of layers, one group each."""
    table = Table(title="A chain of layers, one group each")
    for column in ("groups", "trace", "per group", "halve all", "peak memory"):
        table.add_column(column)
    for number in NUM_GROUPS:
        row = run_script("scale", "groups", str(number))
        table.add_row(
            f"{number:,}",
            f"{row['trace_s']:.2f} s",
            f"{1000 * row['trace_s'] / number:.2f} ms",
            f"{row['halve_s']:.2f} s",
            mib(row["peak_bytes"]),
        )
    return table


def llama_table() -> Table:
    """Measure tracing and halving seven billion parameters on the meta device."""
    row = run_script("scale", "llama")
    table = Table(title="Llama-shaped, 7 billion parameters, meta device")
    for column in ("groups", "trace", "predict cost", "halve", "parameters", "FLOPs", "peak"):
        table.add_column(column)
    params, flops = (
        " → ".join(f"{value / scale:.2f} {unit}" for value in row[key])
        for key, scale, unit in (("params", 1e9, "G"), ("flops", 1e12, "T"))
    )
    table.add_row(
        str(row["groups"]),
        f"{row['trace_s']:.2f} s",
        f"{1000 * row['plan_s']:.1f} ms",
        f"{row['halve_s']:.2f} s",
        params,
        flops,
        mib(row["peak_bytes"]),
    )
    return table


def mib(num_bytes: float) -> str:
    """Format bytes as MiB."""
    return f"{num_bytes / 2**20:.0f} MiB"


def coverage_table(title: str, rows: Sequence[Row]) -> Table:
    """Return the table of how many models pass each check, and of the worst result."""
    table = Table(title=f"{title}: {len(rows)} models")
    for column in ("check", "models", "worst"):
        table.add_column(column)
    good = [row for row in rows if "error" not in row]
    table.add_row("trace and halve every group", f"{len(good)} of {len(rows)}", failures(rows))
    for label, figure, limit in (
        ("grow every group that can exactly", "grow", 1e-4),
        ("shrink back: output", "back", 0.0),
        ("remove units that nothing reads", "unread", 1e-4),
    ):
        # No group can grow exactly if a normalisation depends on the width of each of them.
        asked = [row for row in good if row.get(figure) is not None]
        within = [row for row in asked if row[figure] <= limit]
        worst = max(asked, key=lambda row: row[figure])
        passed = f"{len(within)} of {len(asked)}"
        table.add_row(label, passed, f"{worst[figure]:.1e} ({worst['model']})")
    for label, figure in (
        ("shrink back: weights bit for bit", "same_state"),
        ("one training step", "trains"),
        ("save, load into a new model", "loaded"),
    ):
        asked = [row for row in good if figure in row]
        table.add_row(label, f"{sum(row[figure] for row in asked)} of {len(asked)}", "")
    exact = sum(row["groups"] - row["inexact"] for row in good)
    table.add_row("groups that grow exactly", f"{exact:,}", "")
    table.add_row(
        "groups whose width a normalisation depends on", f"{sum(r['inexact'] for r in good):,}"
    )
    return table


def failures(rows: Sequence[Row]) -> str:
    """Return the names of the models that failed."""
    return ", ".join(row["model"] for row in rows if "error" in row)


def peer_table(models: Sequence[str]) -> Table:
    """Test with Torch-Pruning whether the same models can be halved and then trained."""
    failed = []
    for model in models:
        row = run_peer(VISION, "resize_times", "torch_pruning", model, "0")
        if not row["works"]:
            failed.append(f"{model} ({row['error'].partition(':')[0]})")
    table = Table(title=f"Torch-Pruning: {len(models)} models")
    for column in ("halved, then trained", "failed"):
        table.add_column(column)
    table.add_row(f"{len(models) - len(failed)}", ", ".join(failed))
    return table
