"""The network of `fashion_cnn` and what is done alike on both sides. Imports torch only."""

import torch

from dynopt_ray.schedules import cosine
from dynopt_ray.tasks import Task

EPOCHS = 4
LR = 2e-3
RETRAIN_LR = 1e-3


def trained(task: Task, seed: int) -> torch.nn.Module:
    """The network that is cut."""
    model = task.new_model(seed=seed)
    _train(task, model, EPOCHS, LR, seed)
    return model


def cut_and_retrained(task: Task, model: torch.nn.Module, seed: int) -> tuple[float, float]:
    """Test accuracy as it is, and after one epoch of retraining, in percent."""
    cut = accuracy(task, model)
    _train(task, model, 1, RETRAIN_LR, seed)
    return cut, accuracy(task, model)


def accuracy(task: Task, model: torch.nn.Module) -> float:
    """On the test images, in percent."""
    return 100 * task.evaluate(model, "test").metric


def _train(task: Task, model: torch.nn.Module, epochs: int, lr: float, seed: int) -> None:
    steps = epochs * (len(task.arrays("train")[1]) // 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    task.train_steps(
        model,
        optimizer,
        steps,
        generator=torch.Generator().manual_seed(seed),
        schedule=cosine(lr, num_steps=steps),
    )
