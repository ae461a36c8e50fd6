"""Train the networks of `dynopt/TabularArchitecture-v0`, and write its table.

For each pair of widths, five networks are trained on the handwritten digits. Each is then trained
on as it is, and, from copies, after each possible edit: a layer doubled, or halved by magnitude and
compensated. All figures are means over the five networks. The result depends on nothing but this
file, the library and its version of torch.
`python -m experiments.tabular_networks [FILE]` writes the table, by default in its place.
"""

import copy
import csv
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD

from dynopt_ray.criteria import unit_scores
from dynopt_ray.policies import compensation_batches
from dynopt_ray.structure import Edit, Graph, Grow, Shrink, measure, trace
from dynopt_ray.tasks import Task, load_task

FILE = Path(__file__).parents[1] / "envs" / "dynopt_envs" / "tabular_networks.csv"
WIDTHS = (2, 4, 8, 16, 32, 64)
SEEDS = (0, 1, 2, 3, 4)
START_STEPS, START_RATE = 200, 0.05
TRAIN_STEPS, RATE = 20, 0.01
LARGEST_AGE = 4
BATCH_SIZE, MOMENTUM = 32, 0.9
EDITS = ("none", "grow_1", "shrink_1", "grow_2", "shrink_2")
FIGURES = ("metric", "smooth", "loss", "test_metric", "test_smooth")
COLUMNS = ("width_1", "width_2", "edit", "age", "params", "flops", *FIGURES)
Row = dict[str, object]
Measured = dict[str, list[list[float]]]
"""Edit -> age -> the figures of one network."""


def main(path: str | None = None) -> None:
    """Train all networks, and write the table."""
    torch.set_num_threads(1)
    with Path(path or FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for first in WIDTHS:
            for second in WIDTHS:
                writer.writerows(rows((first, second)))
                print(f"{first}-{second}", file=sys.stderr, flush=True)


def rows(widths: tuple[int, int]) -> Iterator[Row]:
    """Yield the rows of all edits of networks of these widths; each row has the widths after it."""
    task = load_task("digits-mlp", {"hidden": list(widths), "batch_size": BATCH_SIZE})
    of_seeds = [measured(task, seed) for seed in SEEDS]
    for edit in of_seeds[0]:
        after = widths_after(widths, edit)
        cost = measure(
            load_task("digits-mlp", {"hidden": list(after)}).new_model(seed=0), torch.zeros(1, 64)
        )
        for place, of_age in enumerate(zip(*(one[edit] for one in of_seeds), strict=True)):
            means = [f"{statistics.fmean(values):.5f}" for values in zip(*of_age, strict=True)]
            yield {
                "width_1": after[0],
                "width_2": after[1],
                "edit": edit,
                "age": place + (edit != "none"),
                "params": cost.params,
                "flops": cost.flops,
                **dict(zip(FIGURES, means, strict=True)),
            }


def widths_after(widths: tuple[int, int], edit: str) -> tuple[int, int]:
    """Return the widths after an edit."""
    if edit == "none":
        return widths
    kind, layer = edit.split("_")
    after = list(widths)
    place = int(layer) - 1
    after[place] = 2 * after[place] if kind == "grow" else after[place] // 2
    return after[0], after[1]


def measured(task: Task, seed: int) -> Measured:
    """Train one network, then measure it after each edit and each stretch of training.

    Without an edit, the first figures are those before any further training.
    """
    model = task.new_model(seed=seed)
    optimizer = SGD(model.parameters(), lr=START_RATE, momentum=MOMENTUM)
    task.train_steps(model, optimizer, START_STEPS, generator=torch.Generator().manual_seed(seed))
    optimizer.param_groups[0]["lr"] = RATE
    found: Measured = {}
    widths = trace(model, task.example_inputs()).widths
    first, second = widths.values()
    for edit in EDITS:
        if not set(widths_after((first, second), edit)) <= set(WIDTHS):
            continue
        network, its_optimizer = copy.deepcopy((model, optimizer))
        found[edit] = [] if edit != "none" else [figures(task, network)]
        if edit != "none":
            graph = trace(network, task.example_inputs())
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)  # new units draw their weights
                graph.apply(
                    [planned(graph, edit)],
                    optimizer=its_optimizer,
                    compensate=[inputs for inputs, _ in compensation_batches(task)],
                )
            graph.commit()
        generator = torch.Generator().manual_seed(1000 + seed)
        for _ in range(LARGEST_AGE):
            task.train_steps(network, its_optimizer, TRAIN_STEPS, generator=generator)
            found[edit].append(figures(task, network))
    return found


def planned(graph: Graph, edit: str) -> Edit:
    """Return the edit that doubles a layer, or halves it by magnitude."""
    kind, layer = edit.split("_")
    group = graph.groups[int(layer) - 1]
    if kind == "grow":
        return Grow(group.name, units=group.width)
    scores = unit_scores(graph, "magnitude")[group.name]
    return Shrink(group.name, remove=scores.argsort(stable=True)[: group.width // 2].tolist())


def figures(task: Task, model: nn.Module) -> list[float]:
    """Return the figures of a network on validation and test data, in the order of `FIGURES`."""
    validation, test = task.evaluate(model), task.evaluate(model, "test")
    return [validation.metric, validation.smooth, validation.loss, test.metric, test.smooth]


if __name__ == "__main__":
    main(*sys.argv[1:])
