"""What keeps a learner apart from the process around it: random numbers and module modes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def own_randomness(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Run a block whose random draws leave torch's global generators as they were.

    Args:
        device: where the block computes; its generator is kept too when it is a CUDA device.
        seed: what the generators are seeded with inside the block; None goes on from the
            present state. Seeding by a counter makes the randomness of an update a function of
            its number, so a snapshot needs no generator state.
    """
    cpu_state = torch.get_rng_state()
    device_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    if seed is not None:
        # Not torch.manual_seed: it also visits every accelerator, which takes 70 µs.
        torch.default_generator.manual_seed(seed)
        if device_state is not None:
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if device_state is not None:
            torch.cuda.set_rng_state(device_state, device)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a block with every module in eval mode, then put each back into its own mode."""
    training = [module for module in model.modules() if module.training]
    # Past nn.Module's own, which looks among parameters first and costs more than the forward.
    set_mode = object.__setattr__
    for module in training:
        set_mode(module, "training", False)
    try:
        yield
    finally:
        for module in training:
            set_mode(module, "training", True)


def mix_seed(seed: int, counter: int) -> int:
    """A seed for the `counter`-th use of `seed`: far apart even for neighbouring counters."""
    value = (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 1) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1
