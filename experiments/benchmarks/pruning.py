"""Pruning beside Torch-Pruning and torch.nn.utils.prune: accuracy, latency and overhead.

All start from the same trained weights, cut to the same share of the FLOPs (or weights), and
retrain for one epoch with the same optimizer, rate and order of rows. Accuracy is on the 10,000
test images of Fashion-MNIST. `python -m experiments.benchmarks.pruning CASE …` runs some of the
cases.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.utils import prune as torch_prune

from dynopt_ray.schedules import cosine
from dynopt_ray.tasks import Task
from dynopt_ray.training import Budget, Distillation, Fraction, Retraining, prune
from experiments.benchmarks.cases import (
    CASES,
    Case,
    accuracy,
    epoch,
    loaded,
    spread,
    train,
    trained,
)
from experiments.benchmarks.environments import run_peer
from experiments.benchmarks.timing import latency_ms

SEEDS = (0, 1, 2)
WEIGHTS = (0.9, 0.95, 0.98)
PEER, TORCH, OURS, DISTILLED = (
    "Torch-Pruning",
    "torch.nn.utils.prune",
    "dynopt_ray",
    "dynopt_ray, distilled",
)

Row = dict[str, Any]


def main(names: Sequence[str] = ()) -> None:
    """Train, cut, retrain, and print the table, of all cases or those named."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in names or CASES:
        for seed in SEEDS:
            rows += measured(name, CASES[name], seed)
    print_table(rows)


def measured(name: str, case: Case, seed: int) -> Iterator[Row]:
    """All cuts of one trained network."""
    task = case.make_task()
    model = trained(case, task, seed)
    start = {
        "case": name,
        "start": accuracy(task, model),
        "start_latency_ms": latency_ms(model, task),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "network.npz")
        np.savez(path, **{k: v.numpy() for k, v in model.state_dict().items()})
        for label, share in case.shares.items():
            peer = run_peer(".venv-peers", "torch_pruning_cut", name, path, str(share), str(seed))
            yield {**start, "cut_to": label, "share": share, "method": PEER, **peer}
            for row in units(case, task, path, share, seed):
                yield {**start, "cut_to": label, "share": share, **row}
        for remove in WEIGHTS if name == "mlp" else ():
            for row in weights(case, task, path, remove, seed):
                yield {**start, "cut_to": f"{1 - remove:.0%} of weights", **row}


def units(case: Case, task: Task, path: str, share: float, seed: int) -> Iterator[Row]:
    """Ours, with and without distillation."""
    model = loaded(task, path)
    before = copy.deepcopy(model)
    began = time.perf_counter()
    prune(
        model,
        task,
        target=Budget(flops=share),
        criterion="reconstruction",
        scope="layer",
        seed=seed,
    )
    total_s = time.perf_counter() - began
    judging_s = _evaluation_s(task, before, "validation") + _evaluation_s(task, model, "validation")
    row = {
        "cut": accuracy(task, model),
        "latency_ms": latency_ms(model, task),
        "overhead_s": total_s - judging_s - _evaluation_s(task, model, "test"),
    }
    yield from retrained(case, task, before, model, row, seed)


def weights(case: Case, task: Task, path: str, remove: float, seed: int) -> Iterator[Row]:
    """Single weights by magnitude: torch's own masks, and ours."""
    model = loaded(task, path)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    torch_prune.global_unstructured(  # type: ignore[no-untyped-call]
        [(layer, "weight") for layer in layers],
        pruning_method=torch_prune.L1Unstructured,
        amount=remove,
    )
    cut = accuracy(task, model)
    train(task, model, num_steps=epoch(task), lr=case.retrain_lr, seed=seed)
    yield {"method": TORCH, "cut": cut, "retrained": accuracy(task, model)}
    model = loaded(task, path)
    before = copy.deepcopy(model)
    prune(model, task, target=Fraction(remove=remove), granularity="weight", rounds=4, seed=seed)
    yield from retrained(case, task, before, model, {"cut": accuracy(task, model)}, seed)


def retrained(
    case: Case, task: Task, before: nn.Module, cut: nn.Module, row: Row, seed: int
) -> Iterator[Row]:
    """The row of a cut network, after one epoch with and without distillation."""
    num_steps = epoch(task)
    state = copy.deepcopy(cut.state_dict())
    for method, distillation in ((OURS, None), (DISTILLED, Distillation())):
        cut.load_state_dict(state)
        schedule = cosine(case.retrain_lr, num_steps=num_steps)
        retraining = Retraining(num_steps, schedule, distillation=distillation)
        began = time.perf_counter()
        retraining(
            task,
            cut,
            torch.optim.Adam(cut.parameters(), lr=case.retrain_lr),
            generator=torch.Generator().manual_seed(seed),
            added_loss=retraining.teacher_loss(before, task),
        )
        epoch_s = time.perf_counter() - began
        yield {**row, "method": method, "epoch_s": epoch_s, "retrained": accuracy(task, cut)}


def _evaluation_s(task: Task, model: nn.Module, split: Any) -> float:
    began = time.perf_counter()
    task.evaluate(model, split)
    return time.perf_counter() - began


def print_table(rows: Sequence[Row]) -> None:
    """One row per case, share and method."""
    table = Table(
        title=f"Fashion-MNIST, {len(SEEDS)} seeds, test accuracy % (mean ± sd)",
        caption="lost: after the epoch against the start. latency: batch 64, of the unpruned; "
        "overhead: scoring, compensation and surgery, of the retraining epoch.",
    )
    columns = ("network", "left", "method", "start", "cut", "after an epoch", "lost")
    for column in (*columns, "latency", "overhead"):
        table.add_column(column)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["cut_to"], row["method"]), []).append(row)
    for (case, left, method), found in groups.items():
        lost = [row["start"] - row["retrained"] for row in found]
        table.add_row(
            *(case, left, method),
            *(spread([row[key] for row in found]) for key in ("start", "cut", "retrained")),
            spread(lost),
            ratio(found, "latency_ms", "start_latency_ms"),
            ratio(found, "overhead_s", "epoch_s"),
        )
    Console(width=130).print(table)


def ratio(rows: Sequence[Mapping[str, Any]], above: str, below: str) -> str:
    """Mean and standard deviation of a quotient, where it was measured."""
    found = [row[above] / row[below] for row in rows if above in row and below in row]
    return spread(found) if found else ""


if __name__ == "__main__":
    main(sys.argv[1:])
