"""One seed for everything random, whatever the process did before."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dynopt_ray.tasks import seeded_torch
from dynopt_ray.training.numbers import whole


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[torch.Generator]:
    """Torch's generators seeded for a while, then as they were; and a generator of one's own.

    The first decide what layers draw (dropout, new units), the second the order of rows.

    Args:
        model: its devices' generators are meant, and the CPU's.
        seed: the same one gives the same draws.

    Raises:
        TypeError: a seed that is no whole number.
        ValueError: one below 0.
    """
    seed = whole("seed", seed, least=0)
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with seeded_torch(seed, devices):
        yield torch.Generator().manual_seed(seed)
