"""Counts how often the host waits for a GPU, on a real one or on the stand-in."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch

from tests.gpu.stand_in import stand_in

Run = Callable[[], object]


@contextlib.contextmanager
def wait_counter(*, real: bool) -> Iterator[Callable[[Run], int]]:
    """Yield a function that runs something and returns how often the host waited meanwhile."""
    if real:
        yield _waits_on_gpu
        return
    with stand_in() as machine:

        def waits(run: Run) -> int:
            machine.counts.reset()
            run()
            return machine.counts.num_waits

        yield waits


def _waits_on_gpu(run: Run) -> int:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(one.message) for one in found)
