"""Seed everything random from one number, independent of earlier random draws."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dynopt_ray.tasks import seeded_torch
from dynopt_ray.training.numbers import whole


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[torch.Generator]:
    """Seed torch's generators inside this context and yield another generator of the same seed.

    Torch's generators decide what layers draw (dropout, new units) and are restored afterwards. The
    yielded generator is for the caller, e.g. for the order of rows.

    Args:
        model: the generators of its devices are seeded, and the CPU's.
        seed: the same seed gives the same draws.

    Raises:
        TypeError: the seed is not a whole number.
        ValueError: the seed is below 0.
    """
    seed = whole("seed", seed, least=0)
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with seeded_torch(seed, devices):
        yield torch.Generator().manual_seed(seed)
