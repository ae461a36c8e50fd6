"""What tests of durable learners share: a learner, its events, and its state as bytes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dynopt_ray.online import DurableLearner, Event, Guard, OnlineLearner
from dynopt_ray.storage import write_state


def build() -> OnlineLearner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return OnlineLearner(
        model, optimizer, detector="adwin", guard=Guard(window=8), reactions=["raise_rate"], seed=3
    )


def events(num_events: int) -> list[Event]:
    x = np.random.default_rng(0).normal(size=(num_events, 4)).astype(np.float32)
    x[10:11, 2] = np.nan
    return [(row, np.asarray(row[:3].argmax())) for row in x]


def state_bytes(of: DurableLearner, tmp_path: Path) -> bytes:
    write_state(tmp_path / "compared", of.learner.state_dict(), kind="learner")
    return (tmp_path / "compared").read_bytes()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def undisturbed(stream: Sequence[Event], tmp_path: Path) -> bytes:
    learner = build()
    for x, y in stream:
        learner.learn(x, y)
    write_state(tmp_path / "compared", learner.state_dict(), kind="learner")
    return (tmp_path / "compared").read_bytes()
