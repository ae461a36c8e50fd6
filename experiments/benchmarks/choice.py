"""How much of a search's gain on validation data is left on test data, by the rule of choice.

The best of many trials on a few hundred validation rows owes part of its lead to luck. The demo's
search is repeated from networks that were trained with different seeds, and the networks that each
rule chooses are compared with the network before the search, on both splits.
`python -m experiments.benchmarks.choice [SEEDS]` runs it.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from dynopt_ray.cluster import PruneTrial, TrialLog, search
from dynopt_ray.cluster.searching.choice import Winner
from dynopt_ray.cluster.trials import TrialFiles
from dynopt_ray.journals import lines_at, read_journal, store_at
from dynopt_ray.runs.loading import load_spec
from dynopt_ray.runs.origin import prepare_task
from dynopt_ray.training import loaded_network, make_optimizer, network_bytes

SEEDS = 20
SETTINGS = ("num_trials", "searcher", "scheduler", "num_reports")
RULES: tuple[Winner, ...] = get_args(Winner)
Row = dict[str, Any]


def main(num_seeds: int = SEEDS) -> None:
    """Run the searches, and print the table."""
    torch.set_num_threads(1)
    rows = []
    for seed in range(num_seeds):
        rows += measured(seed)
        print(rows[-len(RULES) :], file=sys.stderr, flush=True)
    Console(width=100).print(table_of(rows))


def measured(seed: int) -> list[Row]:
    """Train a network, search from it, and return the losses of accuracy by each rule."""
    spec: Any = load_spec("demo")
    task = prepare_task(spec.task)
    model = task.new_model(seed=seed)
    optimizer = make_optimizer(spec.optimizer, model, lr=spec.train.lr)
    generator = torch.Generator().manual_seed(seed)
    task.train_steps(model, optimizer, spec.train.num_steps, generator=generator)
    settings = {name: getattr(spec.search, name) for name in SETTINGS}
    trial = PruneTrial(
        task,
        network_bytes(model),
        retrain_steps=spec.search.retrain_steps,
        optimizer=spec.optimizer,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        search(
            trial,
            spec.space,
            cost_weight=spec.cost_weight,
            seed=seed,
            storage=folder,
            local=True,
            **settings,
        )
        log = TrialLog()
        for record in read_journal(lines_at(folder)):
            log.append(record.kind, **record.fields)
        files = TrialFiles(store_at(folder))
        costs = log.table().set_index("trial")["cost"]
        rows = []
        for rule in RULES:
            winner = log.winner(rule)
            assert winner is not None
            network = files.network(winner)
            assert network is not None
            row: Row = {"rule": rule, "cost": float(costs[winner])}
            for split in ("validation", "test"):
                before = task.evaluate(model, split).metric  # type: ignore[arg-type]
                after = task.evaluate(loaded_network(task, network), split).metric  # type: ignore[arg-type]
                row[split] = 100 * (after - before)
            rows.append(row)
    return rows


def table_of(rows: Sequence[Row]) -> Table:
    """Return means over the searches, each with its standard error."""
    table = Table(
        title=f"Change of accuracy by the demo's search, points ({len(rows) // len(RULES)} seeds)",
        caption="mean ± standard error",
    )
    for column in ("choice", "cost", "validation", "test", "test, worst seed"):
        table.add_column(column)
    for rule in RULES:
        mine = [row for row in rows if row["rule"] == rule]
        figures = [_spread([row[name] for row in mine]) for name in ("cost", "validation", "test")]
        table.add_row(rule, *figures, f"{min(row['test'] for row in mine):+.2f}")
    return table


def _spread(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):+.2f} ± {error:.2f}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
