"""Small tasks and trained networks."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

from dynopt_ray.tasks import Task
from tests.training.planted import planted


@pytest.fixture
def task() -> Task:
    """What `planted` computes, and how it is trained: mean squared error."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(240, 3, generator=generator)
    with torch.no_grad():
        y = planted()(x)
    return Task.from_arrays(
        model=planted,
        train=(x[:160], y[:160]),
        validation=(x[160:200], y[160:200]),
        test=(x[200:], y[200:]),
        loss="mse",
        batch_size=32,
        name="planted",
    )


@pytest.fixture
def blobs() -> Task:
    """Three classes that a network of two hidden layers tells apart, nearly."""
    return make_blobs()


@pytest.fixture
def trained() -> Callable[[], tuple[nn.Module, torch.optim.Adam]]:
    """Makes the same trained network and optimizer each time."""
    return lambda: copy.deepcopy(trained_once())


def make_blobs() -> Task:
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(600) % 3
    centres = torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 1.0], [-2.0, -1.0, 0.0, 0.0]])
    x = centres[y] + torch.randn(600, 4, generator=generator)
    return Task.from_arrays(
        model=lambda: nn.Sequential(
            nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
        ),
        train=(x[:400], y[:400]),
        validation=(x[400:500], y[400:500]),
        test=(x[500:], y[500:]),
        batch_size=50,
        name="blobs",
    )


@cache
def trained_once() -> tuple[nn.Module, torch.optim.Adam]:
    task = make_blobs()
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    task.train_steps(model, optimizer, 60, generator=torch.Generator().manual_seed(0))
    return model, optimizer
