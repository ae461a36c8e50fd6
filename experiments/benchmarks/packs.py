"""Measure what packs of trials gain.

`python -m experiments.benchmarks packs` runs all parts; `python -m experiments.benchmarks.packs
PART …` only the named ones:

- mlps: pruning trials of a small MLP per minute in packs, of plain Tune with reused actors
- steps: optimizer steps per second in packs of several sizes, of torch's own loop
- others: the same for networks that are not stacked by hand, through `torch.func`
- functions: time per trial of 10,000 functions that share actors

Ratios come from runs that alternate in one session. All processes use one thread each.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from dynopt_ray.cluster import PruneTrial, SearchStorage, search, session
from dynopt_ray.journals import RunJournal, lines_at, store_at
from dynopt_ray.population import (
    PaddedMember,
    batch_rows,
    checked_layout,
    padded_inputs,
    train_together,
)
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import make_optimizer, network_bytes
from experiments.benchmarks.cluster import functions

REPETITIONS, NUM_SLOTS = 3, 2
TUNE_TRIALS, PACK_TRIALS, PACK = 60, 256, 64
CASES = ((128, 200, 10), (32, 200, 10), (32, 1000, 10))
"""Rows per batch, optimizer steps and measurements of a trial."""
SIZES = (1, 4, 16, 64)
STEPS = (([32], 32, "sgd"), ([32, 32], 128, "adam"), ([256], 128, "adam"))
"""Widths, rows per batch, and optimizer."""
SPACE: Mapping[str, Any] = {
    "remove_fraction": {"low": 0.2, "high": 0.8},
    "lr": {"name": "cosine", "initial": {"low": 1e-3, "high": 0.1, "log": True}},
}


def main(parts: Sequence[str] = ("mlps", "steps", "others", "functions")) -> None:
    """Measure, and print a table for each part."""
    torch.set_num_threads(1)
    for part in parts:
        Console(width=110).print(PARTS[part]())


def mlps() -> Table:
    """Compare trials per minute with plain Tune, for short and long trials."""
    table = Table(
        title=f"Pruning trials of an MLP 64-32-10, {NUM_SLOTS} slots, packs of {PACK}",
        caption="from the start of the first trial to the end of the last; median (least, "
        f"greatest) of {REPETITIONS} runs that alternate",
    )
    for column in ("batch, steps, measurements", "Tune, trials/min", "packs, trials/min", "ratio"):
        table.add_column(column)
    with session(num_cpus=NUM_SLOTS):
        for batch, num_steps, num_reports in CASES:
            task = load_task({"name": "digits-mlp", "hidden": [32], "batch_size": batch})
            trial = PruneTrial(
                task, _trained(task), retrain_steps=num_steps, num_reports=num_reports
            )
            theirs, ours = [], []
            for _ in range(REPETITIONS):
                theirs.append(60 * TUNE_TRIALS / _with_tune(trial))
                ours.append(60 * PACK_TRIALS / _with_packs(trial))
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            table.add_row(
                f"{batch}, {num_steps}, {num_reports}",
                *(_spread(values, "{:.0f}") for values in (theirs, ours)),
                _spread(ratios, "{:.1f}"),
            )
    return table


def _spread(values: Sequence[float], form: str) -> str:
    middle, least, most = (
        form.format(value) for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({least}, {most})"


def _trained(task: Task) -> bytes:
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    task.train_steps(model, optimizer, 200, generator=torch.Generator().manual_seed(0))
    return network_bytes(model)


class _TimedJournal(RunJournal):
    """Notes when the first trial starts."""

    begun_at = 0.0

    def append(self, kind: str, /, **fields: Any) -> None:
        """See `RunJournal`."""
        if kind == "started" and not self.begun_at:
            self.begun_at = time.monotonic()
        super().append(kind, **fields)


def _with_packs(trial: PruneTrial) -> float:
    with tempfile.TemporaryDirectory() as folder, _TimedJournal(lines_at(folder)) as journal:
        ends: list[float] = []
        result = search(
            trial,
            SPACE,
            num_trials=PACK_TRIALS,
            searcher="random",
            pack=PACK,
            max_concurrent=NUM_SLOTS,
            storage=SearchStorage(journal, store_at(folder)),
            on_end=lambda _: ends.append(time.monotonic()),
        )
        assert (result.trials["status"] == "finished").all()
        return ends[-1] - journal.begun_at


def _with_tune(trial: PruneTrial) -> float:
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # else Tune prints every result
    from ray import tune

    times: list[float] = []

    class Times(tune.Callback):
        def on_trial_start(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    def run(config: dict[str, Any], trial: PruneTrial) -> None:
        torch.set_num_threads(1)
        for measurement in trial(config):
            tune.report(measurement.row(0.1))

    space = {
        "remove_fraction": tune.uniform(0.2, 0.8),
        "lr": {"name": "cosine", "initial": tune.loguniform(1e-3, 0.1)},
    }
    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            tune.with_parameters(run, trial=trial),
            param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=TUNE_TRIALS, reuse_actors=True, max_concurrent_trials=NUM_SLOTS
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[Times()]),
        ).fit()
    assert not results.errors
    return times[-1] - times[0]


def steps() -> Table:
    """Compare optimizer steps per second of packs with those of torch."""
    table = Table(title="Optimizer steps per second, one thread", caption="median of 5")
    for column in ("network, batch, optimizer", "torch", *(f"pack of {size}" for size in SIZES)):
        table.add_column(column)
    for hidden, batch, optimizer in (
        ([32], 32, "sgd"),
        ([32, 32], 128, "adam"),
        ([256], 128, "adam"),
    ):
        task = load_task({"name": "digits-mlp", "hidden": hidden, "batch_size": batch})
        name = f"64-{'-'.join(map(str, hidden))}-10, {batch}, {optimizer}"
        model = task.new_model(seed=0)
        made = make_optimizer(optimizer, model, lr=0.01)
        generator = torch.Generator().manual_seed(0)

        def train(task: Task = task, model: Any = model, made: Any = made) -> None:
            task.train_steps(model, made, 20, generator=generator)  # noqa: B023

        alone = 20 / _seconds(train)
        row = [name, f"{alone:,.0f}"]
        for size in SIZES:
            rate = size * 20 / _seconds(_pack_of(task, model, optimizer, batch, size))
            row.append(f"{rate:,.0f} ({rate / alone:.1f} x)")
        table.add_row(*row)
    return table


def _pack_of(
    task: Task, model: nn.Module, optimizer: str, batch: int, size: int
) -> Callable[[], object]:
    start = checked_layout(model)
    members = [
        PaddedMember.of(model, make_optimizer(optimizer, model, lr=0.01), start)
        for _ in range(size)
    ]
    generators = [torch.Generator().manual_seed(member) for member in range(size)]
    x, y = task.arrays("train")
    x, rates = padded_inputs(x), torch.full((20, size), 0.01, dtype=torch.float64)

    def train() -> None:
        rows = batch_rows(len(y), batch, 20, generators)
        train_together(members, x, y, rows_SPB=rows, rates_SP=rates)

    return train


def _seconds(run: Callable[[], object], repetitions: int = 5) -> float:
    run()
    times = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


OTHERS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "CNN on 8x8 pixels": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64, 10)),
        ),
        (1, 8, 8),
    ),
    "CNN on 28x28 pixels": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(16 * 49, 10)),
        ),
        (1, 28, 28),
    ),
    "MLP 64-32-32-10 with GELU": (
        lambda: nn.Sequential(
            *(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 10))
        ),
        (64,),
    ),
}


def others() -> Table:
    """Compare `torch.func` (vmap over stacked parameters) with a loop over networks."""
    table = Table(
        title="Steps of SGD with momentum through torch.func, of a loop over networks",
        caption="batches of 32, one thread, median of 5: ratio of steps per second",
    )
    for column in ("network", *(f"{size} networks" for size in SIZES)):
        table.add_column(column)
    for name, (make, shape) in OTHERS.items():
        ratios = []
        for size in SIZES:
            looped, mapped = _looped_and_mapped(make, shape, size)
            ratios.append(f"{_seconds(looped) / _seconds(mapped):.2f}")
        table.add_row(name, *ratios)
    return table


def _looped_and_mapped(
    make: Callable[[], nn.Module], shape: tuple[int, ...], size: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    models = [make() for _ in range(size)]
    x, y = torch.randn(size, 32, *shape), torch.randint(10, (size, 32))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in models]
    stacked, _ = stack_module_state(models)
    weights = {name: value.detach() for name, value in stacked.items()}
    momenta = {name: torch.zeros_like(value) for name, value in weights.items()}
    base = make().to("meta")

    def loss(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(base, parameters, (inputs,)), targets)

    gradients = vmap(grad(loss))

    def mapped() -> None:
        for name, gradient in gradients(weights, x, y).items():
            momenta[name].mul_(0.9).add_(gradient)
            weights[name].add_(momenta[name], alpha=-0.01)

    def looped() -> None:
        for member, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[member]), y[member]).backward()
            optimizer.step()

    return looped, mapped


PARTS: Mapping[str, Callable[[], Table]] = {
    "mlps": mlps,
    "steps": steps,
    "others": others,
    "functions": functions,
}


if __name__ == "__main__":
    main(sys.argv[1:] or tuple(PARTS))
