"""Compare growing with training from scratch: test accuracy against training FLOPs.

A network with an eighth of the full width trains for some steps and then grows to five or six
eighths, at once or in rounds. It is compared with the full width trained from scratch and, as a
fair rival, with the final width trained from scratch for as many FLOPs. All networks train with
Adam and a cosine schedule on Fashion-MNIST. When to grow and how wide was chosen by the accuracy on
the same test images that the table shows.
`python -m experiments.benchmarks.growing CASE …` runs only the named cases.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from dynopt_ray.schedules import cosine
from dynopt_ray.structure import measure
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import Budget, GrowthCriterion, GrowthInit, Retraining, grow
from experiments.benchmarks.cases import Row, accuracy, epoch, spread, told, train

SEEDS = (0, 1, 2)
LR = 2e-3
SMALL_EPOCHS = 0.02
SHARE, WITHIN = 0.6, 0.3
"""The goal: at most this share of the full width's FLOPs, and this many points less accuracy."""


@dataclass(frozen=True)
class Case:
    """A network of variable width, and how long it trains.

    Attributes:
        make_task: width, in eighths of the full width -> the data and the untrained network.
        final: the width to grow to, in eighths.
        num_epochs: epochs of training of the full width.
        num_after: epochs of training after growing.
    """

    make_task: Callable[[int], Task]
    final: int
    num_epochs: float
    num_after: float


@dataclass(frozen=True)
class Way:
    """How a network grows.

    Attributes:
        criterion: decides where it grows.
        init: how new units are initialised.
        rounds: how many times it grows.
        small_epochs: epochs of training before it grows.
    """

    criterion: GrowthCriterion
    init: GrowthInit
    rounds: int = 1
    small_epochs: float = SMALL_EPOCHS

    def __str__(self) -> str:
        times = "once" if self.rounds == 1 else f"{self.rounds} times"
        return f"{self.criterion}, {self.init}, {times} after {self.small_epochs} epochs"


def _cnn(width: int) -> Task:
    return load_task(
        "fashion-mnist-cnn", {"channels": [4 * width, 8 * width], "hidden": 16 * width}
    )


def _mlp(width: int) -> Task:
    return load_task("fashion-mnist-mlp", {"hidden": [16 * width]})


CASES = {
    "mlp": Case(_mlp, final=6, num_epochs=10, num_after=7.9),
    "cnn": Case(_cnn, final=5, num_epochs=4, num_after=6.0),
}
WAYS = (
    Way("even", "fresh"),
    Way("even", "split"),
    Way("even", "gradmax"),
    Way("gain", "gradmax"),
    Way("even", "fresh", small_epochs=0.1),
    Way("even", "fresh", rounds=4),
)


def main(names: Sequence[str] = ()) -> None:
    """Train, grow, and print a table for each case, or for the named cases."""
    torch.set_num_threads(1)
    for name in names or CASES:
        rows = told(row for seed in SEEDS for row in measured(CASES[name], seed))
        Console(width=110).print(table_of(name, rows))


def measured(case: Case, seed: int) -> Iterator[Row]:
    """Measure training from scratch and all ways to grow, with one seed."""
    unit = case.num_epochs * flops(case.make_task(8))
    for width, num_epochs in (
        (8, case.num_epochs),
        (case.final, SMALL_EPOCHS + case.num_after),
        (1, SMALL_EPOCHS + case.num_after),
    ):
        task = case.make_task(width)
        model = task.new_model(seed=seed)
        train(task, model, num_steps=round(num_epochs * epoch(task)), lr=LR, seed=seed)
        yield {
            "way": "from scratch",
            "width": f"{width}/8",
            "flops": num_epochs * flops(task) / unit,
            "accuracy": accuracy(task, model),
        }
    for way in WAYS:
        yield grown(case, way, unit, seed)


def grown(case: Case, way: Way, unit: float, seed: int) -> Row:
    """Measure one network that grows once, or in equal steps over its training."""
    task = case.make_task(1)
    start = flops(task)
    model = task.new_model(seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    small, after = (round(part * epoch(task)) for part in (way.small_epochs, case.num_after))
    generator = torch.Generator().manual_seed(seed)
    task.train_steps(model, optimizer, small, generator=generator)
    num_steps = after // way.rounds
    result = grow(
        model,
        task,
        target=Budget(flops=flops(case.make_task(case.final)) / start),
        train=Retraining(num_steps, cosine(LR, num_steps=after), restart=False),
        criterion=way.criterion,
        init=way.init,
        rounds=way.rounds,
        optimizer=optimizer,
        seed=seed,
    )
    widened = result.history["flops"] / result.history["flops"].iloc[0]
    used = start * (small + num_steps * widened.iloc[1:].sum())
    return {
        "way": str(way),
        "width": f"1/8 → {case.final}/8",
        "flops": float(used / epoch(task) / unit),
        "accuracy": accuracy(task, model),
    }


def flops(task: Task) -> float:
    """Return the FLOPs of a forward pass of the task's network."""
    model: nn.Module = task.new_model(seed=0)
    return measure(model, task.example_inputs()).flops


def table_of(name: str, rows: Sequence[Row]) -> Table:
    """Return the table of a case, with one row per way to train."""
    table = Table(
        title=f"{name} on Fashion-MNIST, {len(SEEDS)} seeds, test accuracy % (mean ± sd)",
        caption=f"goal: at most {SHARE:.0%} of the full width's FLOPs, {WITHIN} points below it",
    )
    for column in ("way", "width", "training FLOPs", "accuracy", "points below full width"):
        table.add_column(column)
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["way"], row["width"]), []).append(row)
    full = [row["accuracy"] for row in found["from scratch", "8/8"]]
    for (way, width), of_way in found.items():
        reached = [row["accuracy"] for row in of_way]
        below = [best - value for best, value in zip(full, reached, strict=True)]
        share = sum(row["flops"] for row in of_way) / len(of_way)
        table.add_row(way, width, f"{share:.1%}", spread(reached), spread(below))
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
