"""Torch's own generators, seeded for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def seeded_torch(seed: int, devices: Sequence[int] = ()) -> Iterator[None]:
    """Torch's generators start from a seed; afterwards they are as they were.

    Args:
        seed: the same one gives the same draws.
        devices: numbers of the CUDA devices whose generators are meant beside the CPU's.
    """
    with torch.random.fork_rng(devices=devices):
        # Not `torch.manual_seed`: it would also seed devices whose state is not restored.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
