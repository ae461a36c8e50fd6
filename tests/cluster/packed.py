"""Pruning trials of one small network, for tests of packs."""

import os
import signal
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dynopt_ray.cluster import Measurement, PruneTrial
from dynopt_ray.cluster.trials import Advance, TrialPack
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import network_bytes

SPACE: dict[str, Any] = {
    "remove_fraction": {"low": 0.1, "high": 0.9},
    "granularity": ["unit", "weight"],
    "criterion": ["magnitude", "random"],
    "lr": [
        {"name": "cosine", "initial": {"low": 1e-3, "high": 0.1, "log": True}},
        {"low": 1e-3, "high": 0.05, "log": True},
    ],
    "seed": [0, 1, 2],
}


def digits(**arguments: Any) -> Task:
    """Return the task of the tests."""
    return load_task({"name": "digits-mlp", "hidden": [40, 24], "batch_size": 32, **arguments})


def trained(task: Task) -> bytes:
    """Return a network that has learned a little."""
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    task.train_steps(model, optimizer, 60, generator=torch.Generator().manual_seed(0))
    return network_bytes(model)


@dataclass(frozen=True, eq=False)
class OfPoint:
    """Pruning trials whose settings are x, the fraction to remove, and y, the learning rate."""

    trial: PruneTrial

    def __call__(
        self, config: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> Iterator[Measurement]:
        return self.trial(self.settings(config), state)

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial."""
        return {"remove_fraction": 0.9 * config["x"], "lr": config["y"] / 20}

    def family(self, config: Mapping[str, Any]) -> Hashable:
        """See `PackableTrial`."""
        return self.trial.family(self.settings(config))

    def new_pack(self) -> TrialPack:
        """See `PackableTrial`."""
        return _PackOfPoints(self, self.trial.new_pack())


@dataclass(frozen=True, eq=False)
class _PackOfPoints:
    trial: OfPoint
    pack: TrialPack

    def start(
        self, number: int, config: Mapping[str, Any], state: Mapping[str, Any] | None
    ) -> None:
        self.pack.start(number, self.trial.settings(config), state)

    def advance(self, numbers: Any) -> Mapping[int, Advance]:
        return self.pack.advance(numbers)

    def close(self, number: int) -> None:
        self.pack.close(number)


@dataclass(frozen=True, eq=False)
class DyingPacks(OfPoint):
    """Trials of which two packs kill their process, in the middle of a turn.

    Attributes:
        folder: gets a file for each death.
    """

    folder: Path

    def new_pack(self) -> TrialPack:
        """See `PackableTrial`."""
        return _DyingPack(self, self.trial.new_pack())


@dataclass(frozen=True, eq=False)
class _DyingPack(_PackOfPoints):
    trial: DyingPacks
    turns: list[int] = field(default_factory=list)

    def advance(self, numbers: Any) -> Mapping[int, Advance]:
        self.turns.append(len(numbers))
        found = super().advance(numbers)
        deaths = len([*self.trial.folder.iterdir()])
        if len(self.turns) == 3 and deaths < 2:
            (self.trial.folder / f"{deaths} {os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return found
