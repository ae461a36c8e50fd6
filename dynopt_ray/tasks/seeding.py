"""Seed torch's own generators within a block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def seeded_torch(seed: int, devices: Sequence[int] = ()) -> Iterator[None]:
    """Seed torch's generators within a block, and restore their previous states afterwards.

    Args:
        seed: seed of the random draws.
        devices: numbers of the CUDA devices whose generators are seeded, in addition to the CPU's.
    """
    with torch.random.fork_rng(devices=devices):
        # Not `torch.manual_seed`: it would also seed devices whose state is not restored.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
