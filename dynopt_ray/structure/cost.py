"""What a network costs: measured by running it, or computed from its widths alone."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynopt_ray.structure.forward import Inputs, call, moved, named_tensors, shells, undisturbed
from dynopt_ray.structure.grouping import Grouping
from dynopt_ray.structure.labels import IntArray
from dynopt_ray.structure.record import Record

FloatArray = npt.NDArray[np.float64]

_WARM_UP = 3
_RUNS = 20


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
    """

    params: int
    nonzero: int
    flops: int
    bytes: int
    latency_ms: float | None = None

    def relative_to(self, start: "Cost", kind: str = "nonzero") -> float:
        """This cost as a fraction of another; `kind` is the name of an attribute."""
        return float(getattr(self, kind)) / max(float(getattr(start, kind)), 1e-12)


def measure(model: nn.Module, example_inputs: Inputs, *, latency: bool = False) -> Cost:
    """The cost of a network on some inputs.

    Args:
        model: the network; it runs in evaluation mode and is not changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments. FLOPs and
            latency are those of this whole batch.
        latency: also time it on the device that it is on: the median of 20 runs after 3.
    """
    parameters = list(model.parameters())
    return Cost(
        params=sum(p.numel() for p in parameters),
        nonzero=count_nonzero(parameters),
        flops=_flops(model, example_inputs),
        bytes=sum(t.numel() * t.element_size() for t in named_tensors(model).values()),
        latency_ms=_latency_ms(model, example_inputs) if latency else None,
    )


def count_nonzero(parameters: Sequence[Tensor]) -> int:
    """Number of entries that are not zero; on the meta device, of all."""
    counts = [p.numel() if p.is_meta else p.detach().count_nonzero() for p in parameters]
    return int(sum(counts))


def _flops(model: nn.Module, inputs: Inputs) -> int:
    tensors = named_tensors(model)
    with undisturbed(model, training=False):
        try:
            with FlopCounterMode(display=False) as counter:
                call(model, moved(inputs, "meta"), shells(tensors, {}, "meta"))
        except Exception:  # a forward that looks at values needs real ones
            device = next((t.device for t in tensors.values()), torch.device("cpu"))
            with FlopCounterMode(display=False) as counter:
                call(model, moved(inputs, device), tensors)
    return int(counter.get_total_flops())


def _latency_ms(model: nn.Module, inputs: Inputs) -> float:
    tensors = named_tensors(model)
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    inputs = moved(inputs, device)
    times = []
    with undisturbed(model, training=False):
        for _ in range(_WARM_UP + _RUNS):
            _wait_for(device)
            start = time.perf_counter()
            _run(model, inputs)
            _wait_for(device)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[_WARM_UP:])


def _run(model: nn.Module, inputs: Inputs) -> None:
    if isinstance(inputs, dict):
        model(**inputs)
    else:
        model(*(inputs if isinstance(inputs, tuple) else (inputs,)))


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class CostModel:
    """Parameters, bytes and FLOPs as functions of the widths: products of affine sizes.

    Every dimension's size is a constant plus a whole number per unit of each group, so the cost
    of any widths is exact arithmetic: no network is resized and none is run.
    """

    def __init__(self, tensors: Mapping[str, Tensor], record: Record, grouping: Grouping) -> None:
        parameters = [n for n, t in tensors.items() if isinstance(t, nn.Parameter)]
        self._grouping = grouping
        self._flops = self._products(
            [(2 * work.coefficient, list(work.factors)) for work in record.work]
        )
        self._params = self._products(
            [(1, self._dims(record, name, tensors[name])) for name in parameters]
        )
        self._bytes = self._products(
            [_bytes(t, self._dims(record, n, t)) for n, t in tensors.items()]
        )

    def cost(self, widths: Sequence[int], nonzero: int | None = None) -> Cost:
        """The cost with these widths, one per group in the grouping's order."""
        vector = np.asarray(widths, dtype=np.float64)
        params = self._params(vector)
        return Cost(
            params, params if nonzero is None else nonzero, self._flops(vector), self._bytes(vector)
        )

    def _dims(self, record: Record, name: str, tensor: Tensor) -> list[IntArray]:
        dims = range(tensor.ndim if (name, 0) in record.parameter_ids else 0)
        return [record.parameter_ids[name, dim] for dim in dims]

    def _products(self, terms: Sequence[tuple[int, list[IntArray]]]) -> "_Products":
        return _Products(terms, self._grouping)


def _bytes(tensor: Tensor, dims: list[IntArray]) -> tuple[int, list[IntArray]]:
    """What a tensor takes up, as a product; one that nobody's units lie along never changes."""
    return tensor.element_size() * (1 if dims else tensor.numel()), dims


class _Products:
    """A sum of products of sizes, each size affine in the widths."""

    def __init__(self, terms: Sequence[tuple[int, Sequence[IntArray]]], grouping: Grouping) -> None:
        from scipy.sparse import csr_array

        widths = np.array([g.width for g in grouping.groups], dtype=np.int64)
        coefficients: list[float] = []
        constants: list[float] = []
        starts: list[int] = []
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        for coefficient, factors in terms:
            starts.append(len(constants))
            coefficients.append(float(coefficient))
            constants.append(1.0)  # a product without factors is its coefficient
            for ids in factors:
                groups, counts = np.unique(grouping.group_of[ids], return_counts=True)
                fixed = groups < 0
                rows += [len(constants)] * int((~fixed).sum())
                columns += groups[~fixed].tolist()
                values += (counts[~fixed] / widths[groups[~fixed]]).tolist()
                constants.append(float(counts[fixed].sum()))
        shape = (len(constants), len(widths))
        self._per_unit = csr_array((values, (rows, columns)), shape=shape)
        self._constant: FloatArray = np.array(constants)
        self._starts = np.array(starts, dtype=np.int64)
        self._coefficients: FloatArray = np.array(coefficients)

    def __call__(self, widths: FloatArray) -> int:
        if not len(self._starts):
            return 0
        sizes = self._constant + (self._per_unit @ widths if len(widths) else 0.0)
        products = np.multiply.reduceat(sizes, self._starts)
        return round(float(self._coefficients @ products))
