"""Costs computed from widths alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from dynopt_ray.arrays import FloatArray
from dynopt_ray.structure.costs.cost import Cost
from dynopt_ray.structure.units import Grouping, IdArray, Record


class CostModel:
    """Parameters, bytes and FLOPs as functions of the widths.

    Each of them is a sum of products of dimension sizes. Every size is a constant plus a whole
    number per unit of each group. So the cost at any widths is exact arithmetic, and no network is
    resized or run.
    """

    def __init__(self, tensors: Mapping[str, Tensor], record: Record, grouping: Grouping) -> None:
        self._sizes: dict[int, _Size] = {}
        parameters = [n for n, t in tensors.items() if isinstance(t, nn.Parameter)]
        self._grouping = grouping
        self._flops = self._products(
            [(2 * work.coefficient, list(work.factors)) for work in record.work]
        )
        self._params = self._products(
            [_entries(tensors[n], self._dims(record, n, tensors[n])) for n in parameters]
        )
        self._bytes = self._products(
            [_bytes(t, self._dims(record, n, t)) for n, t in tensors.items()]
        )
        self._made = record.made
        self._traffic: _Products | None = None

    def cost(self, widths: Sequence[int], nonzero: int | None = None) -> Cost:
        """Return the cost at these widths, one per group in the grouping's order.

        If `nonzero` is None, every parameter counts as non-zero.
        """
        vector = np.asarray(widths, dtype=np.float64)
        params = self._params(vector)
        return Cost(
            params, params if nonzero is None else nonzero, self._flops(vector), self._bytes(vector)
        )

    def traffic(self, widths: Sequence[int]) -> int:
        """Return the bytes that operations write in one forward pass at these widths."""
        if self._traffic is None:  # computed on demand: it has many terms and is rarely needed
            terms = [(work.coefficient, list(work.factors)) for work in self._made]
            self._traffic = self._products(terms)
        return self._traffic(np.asarray(widths, dtype=np.float64))

    def _dims(self, record: Record, name: str, tensor: Tensor) -> list[IdArray]:
        dims = range(tensor.ndim if (name, 0) in record.parameter_ids else 0)
        return [record.parameter_ids[name, dim] for dim in dims]

    def _products(self, terms: Sequence[tuple[int, list[IdArray]]]) -> "_Products":
        return _Products(
            [(coefficient, [self._size(ids) for ids in factors]) for coefficient, factors in terms],
            num_groups=len(self._grouping.groups),
        )

    def _size(self, ids: IdArray) -> "_Size":
        """Return the size of a dimension, cached because many dimensions share their ids."""
        known = self._sizes.get(id(ids))
        if known is None:
            groups = self._grouping.group_of[ids]
            if len(groups) and bool((groups == groups[0]).all()):  # the usual case
                found, counts = groups[:1], np.array([len(groups)])
            else:
                found, counts = np.unique(groups, return_counts=True)
            per_unit = {
                int(group): int(count) / self._grouping.groups[group].width
                for group, count in zip(found, counts, strict=True)
                if group >= 0
            }
            known = _Size(float(counts[found < 0].sum()), per_unit)
            self._sizes[id(ids)] = known
        return known


def _entries(tensor: Tensor, dims: list[IdArray]) -> tuple[int, list[IdArray]]:
    """Return a tensor's entries as a product, which is constant if no units lie along it."""
    return 1 if dims else tensor.numel(), dims


def _bytes(tensor: Tensor, dims: list[IdArray]) -> tuple[int, list[IdArray]]:
    """Return a tensor's bytes as such a product."""
    number, dims = _entries(tensor, dims)
    return tensor.element_size() * number, dims


@dataclass(frozen=True)
class _Size:
    """A size that is affine in the widths: a constant plus a number per unit of each group."""

    constant: float
    per_unit: Mapping[int, float]


class _Products:
    """A sum of products of sizes."""

    def __init__(self, terms: Sequence[tuple[int, Sequence[_Size]]], num_groups: int) -> None:
        from scipy.sparse import csr_array

        one = _Size(1.0, {})  # a product without factors is its coefficient
        sizes = [size for _, factors in terms for size in (one, *factors)]
        lengths = [1 + len(factors) for _, factors in terms]
        self._starts = np.cumsum([0, *lengths[:-1]]) if terms else np.zeros(0, dtype=np.int64)
        self._coefficients: FloatArray = np.array([float(c) for c, _ in terms])
        self._constant: FloatArray = np.array([size.constant for size in sizes])
        columns = [group for size in sizes for group in size.per_unit]
        values = [value for size in sizes for value in size.per_unit.values()]
        rows = np.cumsum([0, *(len(size.per_unit) for size in sizes)])
        self._per_unit = csr_array((values, columns, rows), shape=(len(sizes), num_groups))

    def __call__(self, widths: FloatArray) -> int:
        if not len(self._starts):
            return 0
        sizes = self._constant + (self._per_unit @ widths if len(widths) else 0.0)
        products = np.multiply.reduceat(sizes, self._starts)
        return round(float(self._coefficients @ products))
