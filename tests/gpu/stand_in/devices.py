"""Which device a tensor says it is on: a mark on its storage, since everything lives on the CPU.

A mark on the storage, rather than a subclass of tensors, follows views, `.data`, parameters and
in-place operations by itself, and leaves `type(tensor)` as it is on a real GPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import reductions

CPU = torch.device("cpu")
_SWEEP = 1000
"""Number of marks after which those of dead storages are dropped."""

_weak: Any = reductions.StorageWeakRef
"""Also keeps the address of a storage from being given to another one."""

_MARKS: dict[int, tuple[Any, torch.device]] = {}
"""Storage -> what it is on. It outlives a stand-in, as what is cached by the library does."""

_true_device: Any = torch._C.TensorBase.device


class Devices:
    """The marks, and the device that `cuda` without an index means.

    Attributes:
        num_devices: number of GPUs of the machine.
        current: index of the current GPU.
    """

    def __init__(self, num_devices: int) -> None:
        self.num_devices = num_devices
        self.current = 0
        self._marks = _MARKS
        self._pinned: dict[int, Any] = {}
        self._sweep_at = _SWEEP

    def named(self, device: torch.device | str | int) -> torch.device:
        """Return a device with its index, as CUDA would.

        Raises:
            RuntimeError: the machine has no such GPU.
        """
        place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if place.type != "cuda":
            return place
        index = self.current if place.index is None else place.index
        if index >= self.num_devices:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", index)

    def of(self, tensor: Tensor) -> torch.device:
        """Return the device that a tensor says it is on."""
        with torch._C.DisableTorchFunction():
            plain = _unwrapped(tensor)
            true: torch.device = _true_device.__get__(plain)
            storage = _storage(plain) if true == CPU else None
        if storage is None or storage._cdata not in self._marks:
            return true
        return self._marks[storage._cdata][1]

    def mark(self, tensor: Tensor, device: torch.device) -> None:
        """Let a tensor and everything that shares its storage be on a device."""
        with torch._C.DisableTorchFunction():
            plain = _unwrapped(tensor)
            storage = _storage(plain) if _true_device.__get__(plain) == CPU else None
        if storage is None:
            return
        if device.type != "cuda":
            self._marks.pop(storage._cdata, None)
            return
        self._marks[storage._cdata] = (_weak(storage), device)
        if len(self._marks) > self._sweep_at:
            for key in [k for k, (weak, _) in self._marks.items() if weak.expired()]:
                del self._marks[key]
            self._sweep_at = 2 * len(self._marks) + _SWEEP

    def pin(self, tensor: Tensor) -> None:
        """Let a tensor be in pinned memory of the host."""
        storage = tensor.untyped_storage()
        self._pinned = {k: m for k, m in self._pinned.items() if not m.expired()}
        self._pinned[storage._cdata] = _weak(storage)

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor is in pinned memory of the host."""
        with torch._C.DisableTorchFunction():
            storage = _storage(_unwrapped(tensor))
        return storage is not None and storage._cdata in self._pinned


def _unwrapped(tensor: Tensor) -> Tensor:
    """Return what a tensor inside `vmap` or `torch.func.grad` stands for."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def _storage(tensor: Tensor) -> Any:
    """Return the storage that carries a tensor's mark, or None if it has none."""
    if tensor.layout is torch.sparse_coo:
        with torch.utils._python_dispatch._disable_current_modes():
            return tensor._values().untyped_storage()
    return tensor.untyped_storage() if tensor.layout is torch.strided else None


def device_property(devices: Devices) -> property:
    """Return what `Tensor.device` is while the stand-in is in use."""

    def device(tensor: Tensor) -> torch.device:
        true: torch.device = _true_device.__get__(tensor)  # modes of others see that it was asked
        return devices.of(tensor) if true == CPU else true

    return property(device)
