"""What a network costs: measured by running it, or computed from its widths alone."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynopt_ray.structure.costs.peak_memory import PeakMemory
from dynopt_ray.structure.tracing import (
    Inputs,
    buffers_kept,
    call,
    moved,
    named_tensors,
    run,
    shells,
    undisturbed,
)

_WARM_UP = 3
_RUNS = 20


CostKind = Literal["params", "nonzero", "flops", "bytes", "latency_ms"]
"""The fields of `Cost`."""


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        params: number of parameters.
        nonzero: number of parameters that are not zero.
        flops: floating-point operations of one forward pass on the example inputs; a
            multiply-add counts as two, and only products count, as in `torch.utils.flop_counter`.
        bytes: memory of parameters and buffers.
        latency_ms: median time of one forward pass in milliseconds, or None if not measured.
        latency_iqr_ms: the interquartile range of these times, or None.
        activation_bytes: the most memory that what a forward pass computes takes at one time,
            without gradients and beside parameters and inputs, or None if not measured.
    """

    params: int
    nonzero: int
    flops: int
    bytes: int
    latency_ms: float | None = None
    latency_iqr_ms: float | None = None
    activation_bytes: int | None = None

    def relative_to(self, start: "Cost", kind: str = "nonzero") -> float:
        """This cost as a fraction of another; `kind` is the name of an attribute."""
        return float(getattr(self, kind)) / max(float(getattr(start, kind)), 1e-12)


def measure(
    model: nn.Module, example_inputs: Inputs, *, latency: bool = False, memory: bool = False
) -> Cost:
    """The cost of a network on some inputs.

    Args:
        model: the network; it runs in evaluation mode and is not changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments. FLOPs,
            latency and memory are those of this whole batch.
        latency: also time it on the device that it is on: the median and spread of 20 runs after
            3 that do not count.
        memory: also measure what a pass holds in memory.
    """
    parameters = list(model.parameters())
    flops, activation_bytes = _counted(model, example_inputs, memory)
    median_ms, iqr_ms = latency_ms(model, example_inputs) if latency else (None, None)
    return Cost(
        params=sum(p.numel() for p in parameters),
        nonzero=count_nonzero(parameters),
        flops=flops,
        bytes=sum(t.numel() * t.element_size() for t in named_tensors(model).values()),
        latency_ms=median_ms,
        latency_iqr_ms=iqr_ms,
        activation_bytes=activation_bytes,
    )


def count_nonzero(parameters: Sequence[Tensor]) -> int:
    """Number of entries that are not zero; on the meta device, of all."""
    counts = [p.numel() if p.is_meta else p.detach().count_nonzero() for p in parameters]
    return int(sum(counts))


def _counted(model: nn.Module, inputs: Inputs, memory: bool) -> tuple[int, int | None]:
    """FLOPs and the peak memory of activations: without data where the network allows that."""
    tensors = named_tensors(model)
    with undisturbed(model, training=False), buffers_kept(model):
        try:
            return _counted_on("meta", model, inputs, shells(tensors, {}, "meta"), memory)
        except Exception:  # a forward that looks at values needs real ones
            return _counted_on(_device(tensors), model, inputs, tensors, memory)


def _counted_on(
    device: torch.device | str,
    model: nn.Module,
    inputs: Inputs,
    tensors: Mapping[str, Tensor],
    memory: bool,
) -> tuple[int, int | None]:
    inputs = moved(inputs, device)
    # Written out as products: what each device makes of attention is not known to the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(model, inputs, tensors)
    flops = int(counter.get_total_flops())
    if not memory:
        return flops, None
    # A pass of its own: the counter decomposes operations, and their parts would count.
    with PeakMemory() as peak:
        call(model, inputs, tensors)
    return flops, peak.peak_bytes


def latency_ms(model: nn.Module, inputs: Inputs) -> tuple[float, float]:
    """Median and interquartile range of the time of one forward pass; see `measure`."""
    device = _device(named_tensors(model))
    inputs = moved(inputs, device)
    times = []
    with undisturbed(model, training=False), buffers_kept(model):
        for _ in range(_WARM_UP + _RUNS):
            _wait_for(device)
            start = time.perf_counter()
            run(model, inputs)
            _wait_for(device)
            times.append(1000 * (time.perf_counter() - start))
    low, median, high = statistics.quantiles(times[_WARM_UP:], n=4)
    return median, high - low


def _device(tensors: Mapping[str, Tensor]) -> torch.device:
    return next((t.device for t in tensors.values()), torch.device("cpu"))


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
