"""The device that computes, and errors that are the machine's fault.

Code that takes a device takes `auto` as well: the GPU, if this process was granted one that works,
or else the CPU. Who starts the work says whether it was granted one: Ray reserves GPUs, but leaves
a process that reserved none free to use all of them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from dynopt_ray.errors import DeviceError

AUTO = "auto"
"""Stands for the GPU if there is one to use, or else the CPU."""

# AcceleratorError exists since torch 2.8.
OF_THE_MACHINE: tuple[type[Exception], ...] = (
    torch.OutOfMemoryError,
    getattr(torch, "AcceleratorError", torch.OutOfMemoryError),
    MemoryError,
)
"""Errors that say nothing about a network or its data, such as exhausted memory.

PyTorch's are RuntimeErrors. Code that tries something else when a network cannot do it must let
these through, or the result depends on how much memory was free.
"""

_granted: ContextVar[bool] = ContextVar("granted", default=True)


@contextmanager
def gpus_granted(granted: bool) -> Iterator[None]:
    """Within the block, `auto` may be a GPU only if one was granted to this work."""
    token = _granted.set(granted)
    try:
        yield
    finally:
        _granted.reset(token)


def chosen_device(device: str | torch.device) -> torch.device:
    """Return the device that a setting stands for; a CUDA device gets its index.

    Args:
        device: `auto`, or a device of PyTorch such as `cpu`, `cuda:1` or `mps`. `auto` is never
            `mps`, which must be asked for.

    Raises:
        DeviceError: there is no such device.
    """
    if device == AUTO:
        return torch.device("cuda", torch.cuda.current_device()) if _has_gpu() else _CPU
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(
            f"device is {device!r:.60}; give auto, cpu, cuda, cuda:1 or another device of PyTorch"
        ) from error
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device is mps, which this machine or this PyTorch does not have")
    return _indexed(place) if place.type == "cuda" else place


_CPU = torch.device("cpu")


def _indexed(place: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        raise DeviceError(
            f"device is {place}, but this process sees no GPU; use auto or cpu, or reserve a GPU "
            "for it (CUDA_VISIBLE_DEVICES hides the others)"
        )
    index = torch.cuda.current_device() if place.index is None else place.index
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"device is {place}, but this process sees {torch.cuda.device_count()} GPUs, which are "
            "counted from 0"
        )
    return torch.device("cuda", index)


def _has_gpu() -> bool:
    """Whether a GPU was granted and computes."""
    if not _granted.get() or not torch.cuda.is_available():
        return False
    try:
        torch.zeros(1, device="cuda")
    except OF_THE_MACHINE:
        raise  # another process may have filled it; the CPU would hide that
    except RuntimeError as error:
        warnings.warn(f"the GPU is not used, because it does not work: {error}", stacklevel=3)
        return False
    return True
