"""Half and a quarter of every width of a Fashion-MNIST CNN, beside Torch-Pruning.

Both start from the same trained weights, cut to the same share of the FLOPs, and retrain for one
epoch with the same optimizer, rate and order of rows. Accuracy is on the 10,000 test images.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import Budget, prune
from experiments.benchmarks.cnn import accuracy, cut_and_retrained, trained
from experiments.benchmarks.environments import run_peer

SEEDS = (0, 1, 2)
# The share of the FLOPs that halving (quartering) every width leaves.
SHARES = {"1/3.77": 1 / 3.77, "1/13.5": 1 / 13.5}


def main() -> None:
    """Train, cut, retrain, and print the table."""
    task = load_task("fashion-mnist-cnn")
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    starts = []
    for seed in SEEDS:
        model = trained(task, seed)
        starts.append(accuracy(task, model))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.npz"
            np.savez(path, **{k: v.numpy() for k, v in model.state_dict().items()})
            for label, share in SHARES.items():
                peer = run_peer(
                    ".venv-peers", "torch_pruning_cnn", str(path), str(share), str(seed)
                )
                rows.setdefault(("Torch-Pruning", label), []).append(tuple(peer))
                rows.setdefault(("dynopt_ray", label), []).append(ours(path, task, share, seed))
    print_table(starts, rows)


def ours(path: Path, task: Task, share: float, seed: int) -> tuple[float, float]:
    """Test accuracy right after the cut and after one epoch, in percent."""
    model = task.new_model(seed=0)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in np.load(path).items()})
    prune(model, task, target=Budget(flops=share), criterion="magnitude", scope="layer", seed=seed)
    return cut_and_retrained(task, model, seed)


def print_table(
    starts: list[float], rows: dict[tuple[str, str], list[tuple[float, float]]]
) -> None:
    """One row per method and share."""
    table = Table(title=f"Fashion-MNIST CNN, {len(SEEDS)} seeds, test accuracy % (mean ± sd)")
    for column in ("method", "FLOPs", "start", "after the cut", "after one epoch"):
        table.add_column(column)
    for (method, label), figures in sorted(rows.items(), key=lambda item: item[0][1]):
        cut, retrained = zip(*figures, strict=True)
        table.add_row(method, label, spread(starts), spread(cut), spread(retrained))
    Console(width=100).print(table)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"
