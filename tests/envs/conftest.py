"""Small tasks whose pools of starting networks are trained quickly."""

from typing import Any

import pytest
import torch

from dynopt_ray.tasks import Task
from dynopt_ray.tasks.builtin.models import mlp, vgg

QUICK: dict[str, Any] = {"num_starts": 3, "start_steps": 30, "train_steps": 4, "horizon": 6}


def rows(num_rows: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of three separable classes, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (num_rows,), generator=generator)
    x = torch.randn(num_rows, *shape, generator=generator)
    x.view(num_rows, -1)[:, :3] += 2 * torch.nn.functional.one_hot(labels, 3)
    return x, labels


@pytest.fixture(scope="session")
def mlp_task() -> Task:
    x, y = rows(200, 8)
    return Task.from_arrays(
        model=lambda: mlp(8, [12, 10], 3),
        train=(x[:140], y[:140]),
        validation=(x[140:], y[140:]),
        name="small-mlp",
    )


@pytest.fixture(scope="session")
def cnn_task() -> Task:
    x, y = rows(120, 1, 8, 8)
    return Task.from_arrays(
        model=lambda: vgg(8, [4, 6], 8, 3),
        train=(x[:80], y[:80]),
        validation=(x[80:], y[80:]),
        name="small-cnn",
    )
