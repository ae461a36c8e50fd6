"""The pool of trained networks that episodes of real networks start from."""

from dataclasses import dataclass
from functools import lru_cache

from torch import nn
from torch.optim import SGD

from dynopt_envs.config import StartConfig
from dynopt_ray.errors import DataError
from dynopt_ray.tasks import Metrics, Task
from dynopt_ray.training import seeded


@dataclass(frozen=True, eq=False)
class Start:
    """A trained network of the pool; it is copied and never changed."""

    model: nn.Module
    optimizer: SGD
    metrics: Metrics
    train_loss: float


@lru_cache(maxsize=64)
def start_network(task: Task, config: StartConfig, index: int) -> Start:
    """Return one network of the pool; it is trained when it is first needed in a process.

    It depends on nothing but the task, the configuration and its index. In particular, layers such
    as dropout draw from the network's own seed.
    """
    seed = config.first_start + index
    model = task.new_model(seed=seed)
    optimizer = SGD(model.parameters(), lr=config.start_rate, momentum=config.momentum)
    own = task.to(task.device)  # a loader's pass starts anew
    with seeded(model, seed) as generator:
        own.train_steps(
            model,
            optimizer,
            config.steps_of(index),
            batch_size=batch_size(task, config),
            generator=generator,
        )
        return Start(model, optimizer, own.evaluate(model), own.evaluate(model, "train").loss)


def batch_size(task: Task, config: StartConfig) -> int | None:
    """Return the batch size; None for data loaders, which make their own batches."""
    try:
        task.arrays("train")
    except DataError:
        return None
    return config.batch_size
