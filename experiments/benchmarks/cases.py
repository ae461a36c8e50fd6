"""The networks to prune, and what dynopt_ray and its peers do alike: training and evaluation.

Imports only what is installed in the environments of the peers.
"""

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynopt_ray.criteria import Scope
from dynopt_ray.schedules import cosine
from dynopt_ray.tasks import Task, load_task
from experiments.benchmarks.networks import SmallViT, resnet20

BATCH_SIZE = 128

Row = dict[str, Any]
"""The measurements of one network: column -> value."""


@dataclass(frozen=True)
class Cut:
    """How far a network is cut, and the learning rate of its retraining.

    Attributes:
        share: fraction of the FLOPs to keep.
        retrain_lr: initial learning rate of Adam, which follows a cosine for one epoch.
        peer_lr: initial learning rate of the peer; None if it is the same.
    """

    share: float
    retrain_lr: float = 2e-3
    peer_lr: float | None = None


@dataclass(frozen=True)
class Case:
    """A network on Fashion-MNIST, and how it is trained and cut.

    Attributes:
        make_task: makes the task: the data and the untrained network.
        cuts: name -> cut.
        num_epochs: epochs of training before the cut, with Adam and a cosine schedule.
        lr: initial learning rate of this training.
        scope: scope of our cuts. The other scope leaves less validation accuracy at the last cut.
    """

    make_task: Callable[[], Task]
    cuts: Mapping[str, Cut]
    num_epochs: int
    lr: float = 2e-3
    scope: Scope = "layer"


def _with_network(name: str, model: Callable[[], nn.Module]) -> Task:
    base = load_task("fashion-mnist-cnn")
    splits = {split: base.arrays(split) for split in ("train", "validation", "test")}
    return Task.from_arrays(model=model, batch_size=BATCH_SIZE, name=name, **splits)


CASES = {
    "cnn": Case(
        partial(load_task, "fashion-mnist-cnn"),
        # The FLOPs that are left if every width is halved, or quartered.
        {"1/3.77": Cut(1 / 3.77), "1/13.5": Cut(1 / 13.5, 6e-3)},
        num_epochs=4,
    ),
    "mlp": Case(
        partial(load_task, "fashion-mnist-mlp", {"hidden": [128]}),
        {"50 % of units": Cut(0.5), "25 % of units": Cut(0.25, 4e-3)},
        num_epochs=10,
    ),
    "resnet20": Case(
        partial(_with_network, "resnet20", resnet20),
        {"1/2": Cut(0.5, 4e-3, peer_lr=2e-3), "1/4": Cut(0.25, 4e-3, peer_lr=2e-3)},
        num_epochs=3,
    ),
    "vit": Case(
        partial(_with_network, "vit", SmallViT),
        {"1/2": Cut(0.5), "1/4": Cut(0.25)},
        num_epochs=8,
        lr=1e-3,
        scope="global",
    ),
}
KEPT = Path(__file__).parents[2] / "build" / "benchmarks"
"""The folder in which trained networks are kept for later runs."""


def trained(name: str, task: Task, seed: int) -> Path:
    """Return the file of the trained network to cut; train the network if there is no file yet."""
    case = CASES[name]
    path = KEPT / f"{name}-{case.num_epochs}-epochs-{case.lr:g}-seed-{seed}.npz"
    if not path.exists():
        model = task.new_model(seed=seed)
        train(task, model, num_steps=case.num_epochs * epoch(task), lr=case.lr, seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{k: v.numpy() for k, v in model.state_dict().items()})
    return path


def epoch(task: Task) -> int:
    """Return the number of optimizer steps in one epoch."""
    return len(task.arrays("train")[1]) // BATCH_SIZE


def train(task: Task, model: nn.Module, *, num_steps: int, lr: float, seed: int) -> None:
    """Train with Adam and a cosine schedule; the same seed gives the same order of rows."""
    task.train_steps(
        model,
        torch.optim.Adam(model.parameters(), lr=lr),
        num_steps,
        generator=torch.Generator().manual_seed(seed),
        schedule=cosine(lr, num_steps=num_steps),
    )


def accuracy(task: Task, model: nn.Module) -> float:
    """Return the accuracy on the test images, in percent."""
    return round(100 * task.evaluate(model, "test").metric, 4)


def loaded(task: Task, path: str | Path) -> nn.Module:
    """Return the network with the weights of a file that `np.savez` wrote."""
    model = task.new_model(seed=0)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in np.load(path).items()})
    return model


def told(rows: Iterable[Row]) -> list[Row]:
    """Return all rows, and print each to stderr when it is measured: the table may take hours."""
    found = []
    for row in rows:
        found.append(row)
        print(row, file=sys.stderr, flush=True)
    return found


def spread(values: Sequence[float]) -> str:
    """Format mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"
