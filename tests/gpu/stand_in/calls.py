"""Calls from Python that C++ would answer by where tensors really are."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_leaves

from tests.gpu.stand_in.devices import CPU, Devices
from tests.gpu.stand_in.operations import Operations

_FROM_VALUES = {torch.tensor, torch.as_tensor, torch.asarray}


class Calls(TorchFunctionMode):
    """Moves between devices, reads of values, and where C++ creates what it needs on the way."""

    def __init__(self, devices: Devices, operations: Operations) -> None:
        super().__init__()
        self._devices = devices
        self._operations = operations

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.device and args and isinstance(args[0], int):
            return self._devices.named(args[0])
        if func in _FROM_VALUES:
            return self._from_values(func, args, options)
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, args, options)
        if func is Tensor.new_tensor:
            device = options.pop("device", None) or self._devices.of(args[0])
            return self._from_values(
                torch.tensor, args[1:], {"dtype": args[0].dtype, **options, "device": device}
            )
        if func is Tensor.pin_memory:
            return self._pinned(args[0])
        if func is Tensor.is_pinned:
            return self._devices.is_pinned(args[0])
        # A copy also gets the tensors that were copied before it, which may be elsewhere.
        device = self._device_of(args[:1] if func is Tensor.__deepcopy__ else args, options)
        if device is None or device == CPU:
            with self._operations.within(device):
                return func(*args, **options)
        return self._on_gpu(func, args, options, device)

    def factories(self) -> dict[str, Any]:
        """Name -> what makes tensors of values, also where torch's own Python code calls it.

        Such code runs without this mode, if it was called through it.
        """
        return {func.__name__: partial(self._from_values_of, func) for func in _FROM_VALUES}

    def _from_values_of(self, func: Any, *args: Any, **options: Any) -> Any:
        return self._from_values(func, args, options)

    @contextlib.contextmanager
    def backward(self, roots: Any) -> Iterator[None]:
        """A backward pass: hooks call from Python again, and C++ creates where the loss is."""
        with self, self._operations.within(self._device_of((roots,), {})):
            yield

    def _device_of(self, args: Any, options: Mapping[str, Any]) -> torch.device | None:
        """Return the device that a call names, or else the GPU of its tensors, if it has any."""
        if options.get("device") is not None:
            return self._devices.named(options["device"])
        tensors = [t for t in tree_leaves((args, options)) if isinstance(t, Tensor)]
        return next((d for d in map(self._devices.of, tensors) if d.type == "cuda"), None)

    def _on_gpu(self, func: Any, args: Any, options: Any, device: torch.device) -> Any:
        if func is Tensor.tolist:
            self._operations.counts.wait("tolist")
            with torch.utils._python_dispatch._disable_current_modes():
                return args[0].tolist()
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(
                f"can't convert {device} device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
        if func is Tensor.record_stream:
            return None
        if func is Tensor.get_device:
            return device.index
        with self._operations.within(device):
            return func(*args, **options)

    def _from_values(self, func: Any, args: Any, options: dict[str, Any]) -> Any:
        device = options.pop("device", None)
        if device is None:
            device = _default_device()
        if device is None:
            with self._operations.within(None):
                return func(*args, **options)
        place = self._devices.named(device)
        if isinstance(args[0], Tensor) and func is not torch.tensor:
            wanted = {"dtype": options.get("dtype") or args[0].dtype}
            return self._moved(Tensor.to, (args[0], place), wanted)
        if place.type not in ("cpu", "cuda"):
            return func(*args, **options, device=place)
        requires_grad = options.pop("requires_grad", False)
        with self._operations.within(None):
            made = func(*args, **options, device="cpu")
        return self._moved(Tensor.to, (made, place), {}).requires_grad_(requires_grad)

    def _moved(self, func: Any, args: Any, options: dict[str, Any]) -> Tensor:
        """`Tensor.to`, `cpu` and `cuda`."""
        tensor, *rest = args
        here = self._devices.of(tensor)
        wanted = _Move(self._devices, func, here, tensor.dtype)
        wanted.read(rest, options)
        if wanted.device == here or "meta" in (here.type, wanted.device.type):
            options = {**wanted.options, "dtype": wanted.dtype}
            if wanted.device.type == "meta":
                options["device"] = "meta"
            with self._operations.within(None if here == CPU else here):
                plain: Tensor = tensor.to(**options)
            return plain
        self._operations.count_copy(tensor, wanted.device, non_blocking=wanted.non_blocking)
        self._operations.counts.operations += 1
        with self._operations.within(None if here == CPU else here):
            copied: Tensor = (
                tensor.to(dtype=wanted.dtype) if wanted.dtype != tensor.dtype else tensor
            )
            copied = torch.clone(copied, **wanted.format())
        self._devices.mark(copied, wanted.device)
        if copied.requires_grad:
            copied.register_hook(lambda g: g.to(here))  # type: ignore[no-untyped-call]
        return copied

    def _pinned(self, tensor: Tensor) -> Tensor:
        if self._devices.of(tensor) != CPU:
            raise RuntimeError(
                "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"
            )
        if self._devices.is_pinned(tensor):
            return tensor
        copied = tensor.detach().clone()
        self._devices.pin(copied)
        return copied


class _Move:
    """The arguments of `Tensor.to`, in any of its forms."""

    def __init__(self, devices: Devices, func: Any, here: torch.device, dtype: torch.dtype) -> None:
        self._devices = devices
        self.device = CPU if func is Tensor.cpu else here
        if func is Tensor.cuda:
            self.device = devices.named("cuda")
        self._takes_dtype = func is Tensor.to
        self.dtype = dtype
        self.non_blocking = False
        self.options: dict[str, Any] = {}

    def read(self, rest: list[Any], options: dict[str, Any]) -> None:
        """Take what was given by position and by name."""
        flags = ["non_blocking", "copy"]
        for value in rest:
            if isinstance(value, bool):
                options = {**options, flags.pop(0): value}
            elif value is not None:
                self._take(value)
        options = dict(options)
        for name in ("device", "dtype", "other"):
            if options.get(name) is not None:
                self._take(options[name])
            options.pop(name, None)
        self.non_blocking = bool(options.pop("non_blocking", False))
        self.options = {k: v for k, v in options.items() if v is not None}

    def _take(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.device, self.dtype = self._devices.of(value), value.dtype
        elif isinstance(value, torch.dtype):
            self.dtype = value
        else:
            self.device = self._devices.named(value)

    def format(self) -> dict[str, Any]:
        """The options that a copy to another device takes."""
        return {k: v for k, v in self.options.items() if k == "memory_format"}


def _default_device() -> torch.device | None:
    """Return the default device, or None: the mode that sets it may see calls after this one."""
    stack: Any = _get_current_function_mode_stack
    contexts = [mode for mode in stack() if isinstance(mode, DeviceContext)]
    return contexts[-1].device if contexts else None


def unpickled(tensor: Tensor, device: str) -> Tensor:
    """Return a pickled tensor on the device from which it was pickled."""
    if not torch.cuda.is_available():
        raise RuntimeError(
            "Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is "
            "False."
        )
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise RuntimeError(
            f"Attempting to deserialize object on CUDA device {torch.device(device).index} but "
            f"torch.cuda.device_count() is {torch.cuda.device_count()}."
        )
    return tensor.to(device)
