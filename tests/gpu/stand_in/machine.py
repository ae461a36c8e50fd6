"""`torch.cuda` and `torch.accelerator` as a machine with GPUs would answer."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim import Optimizer

from tests.gpu.stand_in.calls import Calls, unpickled
from tests.gpu.stand_in.devices import Devices, device_property
from tests.gpu.stand_in.operations import Counts, Operations


class StandIn:
    """A machine with GPUs, on the CPU.

    Attributes:
        counts: waits and copies since the last `counts.reset()`.
        memory_fractions: index of a GPU -> the fraction that this process may use.
        capturing: whether a CUDA graph is being captured.
    """

    def __init__(self, num_devices: int) -> None:
        self._devices = Devices(num_devices)
        self._generators = tuple(torch.Generator().manual_seed(i) for i in range(num_devices))
        self._operations = Operations(self._devices, self._generators)
        self._calls = Calls(self._devices, self._operations)
        self.counts: Counts = self._operations.counts
        self.memory_fractions: dict[int, float] = {}
        self.capturing = False

    @contextlib.contextmanager
    def memory_of(self, num_elements: int) -> Iterator[None]:
        """Within the block, a tensor with more elements exhausts the memory of a GPU."""
        self._operations.largest = num_elements
        try:
            yield
        finally:
            self._operations.largest = None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """All of torch sees the GPUs within the block, in this thread."""
        run_backward = torch.autograd.graph._engine_run_backward

        def backward(roots: Any, *args: Any, **kwargs: Any) -> Any:
            with self._calls.backward(roots):
                return run_backward(roots, *args, **kwargs)

        with contextlib.ExitStack() as stack:
            for name, value in {**self._answers(), **self._calls.factories()}.items():
                stack.enter_context(mock.patch(f"torch.{name}", value))
            for module in ("torch.autograd", "torch.autograd.graph"):
                stack.enter_context(mock.patch(f"{module}._engine_run_backward", backward))
            for name, value in self._properties().items():
                setattr(Tensor, name, value)
                stack.callback(delattr, Tensor, name)
            stack.enter_context(_pickled_with_device())
            stack.enter_context(_optimizers_group_by(self._devices))
            stack.enter_context(_autocast_on_the_cpu())
            stack.enter_context(self._calls)
            stack.enter_context(self._operations)
            yield

    def _properties(self) -> dict[str, Any]:
        device = device_property(self._devices)
        return {
            "device": device,
            "is_cuda": property(lambda t: t.device.type == "cuda"),
            "is_cpu": property(lambda t: t.device.type == "cpu"),
        }

    def _answers(self) -> dict[str, Any]:
        """Name within torch -> what stands there instead."""
        devices, generators = self._devices, self._generators

        def index(device: Any = None) -> int:
            return devices.named("cuda" if device is None else device).index

        def state(device: Any = "cuda") -> Tensor:
            return generators[index(device)].get_state()

        def set_state(new: Tensor, device: Any = "cuda") -> None:
            generators[index(device)].set_state(new)

        def set_states(new: list[Tensor]) -> None:
            for generator, one in zip(generators, new, strict=True):
                generator.set_state(one)

        def seed_all(seed: int) -> None:
            for generator in generators:
                generator.manual_seed(seed)

        def choose(device: Any) -> int:
            before, wanted = devices.current, index(device)
            devices.current = before if wanted < 0 else wanted
            return before

        def set_fraction(fraction: float, device: Any = None) -> None:
            self.memory_fractions[index(device)] = fraction

        def accelerator(check_available: bool = False) -> torch.device | None:
            return torch.device("cuda") if devices.num_devices or not check_available else None

        return {
            "cuda.is_available": lambda: devices.num_devices > 0,
            "cuda._lazy_init": lambda: None,
            "cuda.is_initialized": lambda: True,
            "cuda.device_count": lambda: devices.num_devices,
            "cuda.current_device": lambda: devices.current,
            "cuda.set_device": lambda device: choose(device) and None,
            "cuda._exchange_device": choose,
            "cuda._maybe_exchange_device": choose,
            "cuda.default_generators": generators,
            "cuda.get_rng_state": state,
            "cuda.set_rng_state": set_state,
            "cuda.get_rng_state_all": lambda: [g.get_state() for g in generators],
            "cuda.set_rng_state_all": set_states,
            "cuda.manual_seed": lambda seed: generators[devices.current].manual_seed(seed) and None,
            "cuda.manual_seed_all": seed_all,
            "cuda.synchronize": lambda _device=None: self.counts.wait("synchronize"),
            "accelerator.synchronize": lambda _device=None: self.counts.wait("synchronize"),
            "accelerator.is_available": lambda: devices.num_devices > 0,
            "accelerator.current_accelerator": accelerator,
            "cuda.is_current_stream_capturing": lambda: self.capturing,
            "cuda.current_stream": lambda device=None: _Stream(self, index(device)),
            "accelerator.current_stream": lambda device=None: _Stream(self, index(device)),
            "cuda.set_stream": lambda _stream: None,
            "cuda.default_stream": lambda device=None: _Stream(self, index(device)),
            "cuda.stream": lambda _stream: contextlib.nullcontext(),
            "cuda.get_device_name": lambda device=None: f"stand-in {index(device)}",
            "cuda.is_bf16_supported": lambda _emulated=True: True,
            "cuda.get_device_properties": lambda device=None: _Properties(f"{index(device)}"),
            "cuda.set_per_process_memory_fraction": set_fraction,
            "backends.cudnn.is_acceptable": lambda _tensor: False,
        }


MEMORY_BYTES = 80 * 2**30


@dataclass(frozen=True)
class _Properties:
    """What a GPU is like."""

    name: str
    total_memory: int = MEMORY_BYTES


@dataclass(frozen=True)
class _Stream:
    """The current stream of a GPU."""

    machine: StandIn
    device_index: int

    def is_capturing(self) -> bool:
        """Whether what is sent to the stream is captured as a graph."""
        return self.machine.capturing


@contextlib.contextmanager
def stand_in(num_devices: int = 1) -> Iterator[StandIn]:
    """Let this thread run on a machine with GPUs that are not there.

    Tensors say that they are on `cuda:N` and live on the CPU. Mixing devices raises, and what makes
    the host wait is counted. Not modelled: the kernels' own numerics, streams, the sizes of memory
    (only `memory_of`), captured graphs, errors that arrive late, and other threads and processes.

    Example:
        >>> with stand_in() as gpus:
        ...     total = torch.ones(3, device="cuda").sum()
        ...     gpus.counts.reset()
        ...     value = total.item()
        ...     print(total.device, value, dict(gpus.counts.waits))
        cuda:0 3.0 {'item': 1}
    """
    machine = StandIn(num_devices)
    with machine.in_use():
        yield machine


@contextlib.contextmanager
def _pickled_with_device() -> Iterator[None]:
    """A pickled tensor returns to the device that it was on."""
    true_reduce = Tensor._reduce_ex_internal

    def reduce(tensor: Tensor, protocol: int) -> Any:
        if tensor.device.type != "cuda":
            return true_reduce(tensor, protocol)  # type: ignore[no-untyped-call]
        return unpickled, (tensor.detach().cpu(), str(tensor.device))

    with mock.patch.object(Tensor, "_reduce_ex_internal", reduce):
        yield


@contextlib.contextmanager
def _optimizers_group_by(devices: Devices) -> Iterator[None]:
    """Optimizers group their tensors in C++, which knows only where they really are."""
    true_grouping = Optimizer._group_tensors_by_device_and_dtype

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        groups = true_grouping(lists, with_indices)
        return {
            (next(devices.of(t) for t in tensors[0] if t is not None), dtype): (tensors, indices)
            for (_, dtype), (tensors, indices) in groups.items()
        }

    with mock.patch.object(Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(grouped)):
        yield


@contextlib.contextmanager
def _autocast_on_the_cpu() -> Iterator[None]:
    """Operations of C++ look for the CPU's autocast."""
    init_of_torch: Any = torch.autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init_of_torch(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    with mock.patch.object(torch.autocast, "__init__", init):
        yield
