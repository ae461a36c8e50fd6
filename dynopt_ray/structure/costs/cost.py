"""The cost of a network, and its measurement by running the network."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.structure.costs.peak_memory import PeakMemory
from dynopt_ray.structure.tracing import (
    Inputs,
    buffers_kept,
    call,
    named_tensors,
    on_device,
    placeholder_tensors,
    run,
    undisturbed,
)
from dynopt_ray.transfers import read_together

_WARM_UP = 3
_RUNS = 20


CostKind = Literal["params", "nonzero", "flops", "bytes", "latency_ms"]
"""The fields of `Cost`."""


_PER_PASS = ("flops", "latency_ms", "latency_iqr_ms", "activation_bytes")


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Attributes:
        params: number of parameters.
        nonzero: number of parameters that are not zero.
        flops: floating-point operations of one forward pass on `num_samples` samples. A
            multiply-add counts as two, and only products are counted, as in
            `torch.utils.flop_counter`.
        bytes: memory of parameters and buffers.
        latency_ms: median time of one forward pass in milliseconds, or None if not measured.
        latency_iqr_ms: interquartile range of these times in milliseconds, or None.
        activation_bytes: peak memory of everything that a forward pass computes, without gradients
            and not counting parameters and inputs, or None if not measured.
        num_samples: what `flops`, the latency and `activation_bytes` are for: 1 means one sample,
            as in all results of pruning, growing, searches and `adapt`; None means all of the
            example inputs, as in `measure` and `Graph.cost`.
    """

    params: int
    nonzero: int
    flops: int
    bytes: int
    latency_ms: float | None = None
    latency_iqr_ms: float | None = None
    activation_bytes: int | None = None
    num_samples: int | None = None

    def relative_to(self, start: "Cost", kind: str = "nonzero") -> float:
        """Return this cost as a fraction of another; `kind` is the name of an attribute.

        Raises:
            ValueError: the two figures are for different numbers of samples.
        """
        if kind in _PER_PASS and self.num_samples != start.num_samples:
            one, other = (c.num_samples or "all example" for c in (self, start))
            raise ValueError(
                f"{kind} of a pass on {one} sample(s) cannot be compared with that of {other} "
                "sample(s); Graph.cost and measure count all example inputs, results of prune and "
                "grow one sample"
            )
        return float(getattr(self, kind)) / max(float(getattr(start, kind)), 1e-12)


def measure(
    model: nn.Module, example_inputs: Inputs, *, latency: bool = False, memory: bool = False
) -> Cost:
    """Measure the cost of a network on some inputs.

    Args:
        model: the network; it runs in evaluation mode and is not changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments. FLOPs,
            latency and memory are those of this whole batch.
        latency: also time the network on its own device: the median and interquartile range of 20
            passes after 3 warm-up passes.
        memory: also measure the peak memory of a pass.
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
    """Return the number of non-zero entries; on the meta device, that of all entries."""
    return sum(int(count) for count in read_together(nonzero_counts(parameters)))


def nonzero_counts(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the counts of `count_nonzero`, one per parameter, not read yet."""
    return [
        torch.tensor(p.numel(), device="cpu") if p.is_meta else p.detach().count_nonzero()
        for p in parameters
    ]


def _counted(model: nn.Module, inputs: Inputs, memory: bool) -> tuple[int, int | None]:
    """Return FLOPs and peak activation memory, computed without data if the network allows it."""
    tensors = named_tensors(model)
    with undisturbed(model, training=False), buffers_kept(model):
        try:
            return _counted_on(
                "meta", model, inputs, placeholder_tensors(tensors, {}, "meta"), memory
            )
        except OF_THE_MACHINE:
            raise
        except Exception:  # a forward pass that depends on values needs real ones
            return _counted_on(_device(tensors), model, inputs, tensors, memory)


def _counted_on(
    device: torch.device | str,
    model: nn.Module,
    inputs: Inputs,
    tensors: Mapping[str, Tensor],
    memory: bool,
) -> tuple[int, int | None]:
    inputs = on_device(inputs, device)
    # Compute attention as plain products: the counter does not know every device's fused kernels.
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with sdpa_kernel(SDPBackend.MATH), counter:
        call(model, inputs, tensors)
    flops = int(counter.get_total_flops())
    if not memory:
        return flops, None
    # In a separate pass: the FLOP counter decomposes operations, and the intermediate results of
    # their parts would count as memory.
    with PeakMemory() as peak:
        call(model, inputs, tensors)
    return flops, peak.peak_bytes


class _NoModules:
    """Takes the place of torch's tracker of modules, of which only the total is needed here.

    The tracker observes backward passes, and fails if a forward pass calls `autograd.grad`.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> "_NoModules":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def latency_ms(model: nn.Module, inputs: Inputs) -> tuple[float, float]:
    """Return median and interquartile range of the time of a pass, in ms; see `measure`."""
    device = _device(named_tensors(model))
    inputs = on_device(inputs, device)
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
