"""The device that computes, how precisely and repeatably, and errors that are the machine's fault.

Code that takes a device takes `auto` as well: the GPU, if this process was granted one that works,
or else the CPU. Who starts the work says whether it was granted one: Ray reserves GPUs, but leaves
a process that reserved none free to use all of them.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import torch

from dynopt_ray.errors import DeviceError, UnknownNameError

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


Precision = Literal["float32", "tf32", "bf16"]
"""How precisely products of matrices and convolutions are computed.

`float32` does so in 32 bits, also where PyTorch would use TF32 by itself. `tf32` rounds the factors
to 10 bits on a GPU that can, and changes nothing elsewhere. `bf16` is PyTorch's autocast to
bfloat16: weights and the optimizer's state stay float32.
"""

PRECISIONS = get_args(Precision)


def check_precision(precision: str | None) -> None:
    """Refuse an unknown precision.

    Raises:
        UnknownNameError: it is none of `PRECISIONS`, and not None.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)


@contextmanager
def computing(device: torch.device, precision: str | None) -> Iterator[None]:
    """Compute within the block with a precision; None leaves PyTorch as it is set.

    A process-wide setting of PyTorch is changed for `float32` and `tf32` on a GPU, and restored.
    """
    if precision == "bf16":
        # The cache would keep the rounded weights of before an optimizer step within the block.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            yield
        return
    if precision is None or device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


class Determinism:
    """Lets the same operations on the same GPU give the same bits, within a `with` block.

    Without it, the order in which a GPU adds numbers may vary, above all in convolutions. Some
    operations become slower, and those that have no such version raise a RuntimeError that names
    them. The CPU gives the same bits anyway, for the same number of threads.

    Args:
        wanted: whether to do so. If not, PyTorch stays as it is set.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._before = (False, False, False)

    def begin(self) -> None:
        """Begin without a block, for the rest of the process."""
        self._before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
        )
        if self._wanted:
            # cuBLAS reads it when it is first used.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False  # it chooses algorithms by their speed

    def __enter__(self) -> "Determinism":
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        enabled, warns, benchmark = self._before
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark
