"""Isolates a learner from the rest of the process: random numbers and modes of modules."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def own_randomness(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Run a block, then restore torch's global random generators.

    Args:
        device: the device on which the block computes. If it is a CUDA device, its generator is
            restored too.
        seed: the seed of the generators inside the block; None continues from their present
            state. If the seed is derived from the number of an update, so is all randomness of
            the update, and a snapshot needs no generator state.
    """
    cpu_state = torch.get_rng_state()
    device_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    if seed is not None:
        # Not torch.manual_seed: it also seeds every accelerator, which takes 70 µs.
        torch.default_generator.manual_seed(seed)
        if device_state is not None:
            # Not torch.cuda.manual_seed: it seeds the current device, which may be another one.
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if device_state is not None:
            torch.cuda.set_rng_state(device_state, device)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a block with every module in eval mode, then restore the mode of each module."""
    training = [module for module in model.modules() if module.training]
    # nn.Module.__setattr__ searches the parameters first and takes longer than a forward pass.
    set_mode = object.__setattr__
    for module in training:
        set_mode(module, "training", False)
    try:
        yield
    finally:
        for module in training:
            set_mode(module, "training", True)


def mix_seed(seed: int, counter: int) -> int:
    """Return the seed for the `counter`-th use of `seed`; neighbouring counters differ widely."""
    value = (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 1) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1
