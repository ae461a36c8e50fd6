"""Moving values between the host and a GPU with as few waits of the host as possible.

A GPU works through a queue. Each read of a value, and each copy from ordinary memory, makes the
host wait until the queue is empty. The GPU then idles until the host has queued more work. So
values go to the GPU from pinned memory, and everything that a step has to know is read at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dynopt_ray.arrays import BoolArray, FloatArray, IntArray


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the host to a GPU, the host does not wait for the copy."""
    if device.type == "cuda" and tensor.is_cpu:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def array_to_device(array: BoolArray | FloatArray | IntArray, device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; on the CPU it shares the array's memory."""
    return to_device(torch.from_numpy(array), device)


def read_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors on the CPU, after one wait for all of them. Those on the CPU are not copied.

    Args:
        tensors: dense tensors of any shapes, on any devices. If their types differ: real floats,
            bools, and whole numbers up to 2^53.
    """
    far = [tensor.detach() for tensor in tensors if not tensor.is_cpu]
    if not far:
        return [tensor.detach() for tensor in tensors]
    if len({tensor.dtype for tensor in far}) > 1:
        # float64 holds all these values exactly, so one copy can take them all.
        far = [tensor.double() for tensor in far]
    flat = torch.cat([tensor.flatten().to(far[0].device) for tensor in far]).cpu()
    parts = iter(torch.split(flat, [tensor.numel() for tensor in far]))
    return [
        tensor.detach() if tensor.is_cpu else next(parts).to(tensor.dtype).reshape(tensor.shape)
        for tensor in tensors
    ]


def read_numbers(tensors: Sequence[Tensor]) -> list[float]:
    """Return tensors of one number each as floats, after one wait for all of them."""
    return [float(tensor.item()) for tensor in read_together(tensors)]
