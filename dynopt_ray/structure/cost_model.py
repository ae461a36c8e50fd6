"""Costs computed from widths alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from dynopt_ray.structure.cost import Cost
from dynopt_ray.structure.grouping import Grouping
from dynopt_ray.structure.labels import IntArray
from dynopt_ray.structure.record import Record

FloatArray = npt.NDArray[np.float64]


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
            [(t.element_size(), self._dims(record, n, t)) for n, t in tensors.items()]
        )
        self._made = record.made
        self._traffic: _Products | None = None

    def cost(self, widths: Sequence[int], nonzero: int | None = None) -> Cost:
        """The cost with these widths, one per group in the grouping's order."""
        vector = np.asarray(widths, dtype=np.float64)
        params = self._params(vector)
        return Cost(
            params, params if nonzero is None else nonzero, self._flops(vector), self._bytes(vector)
        )

    def traffic(self, widths: Sequence[int]) -> int:
        """Bytes that operations write in one forward pass with these widths."""
        if self._traffic is None:  # there are many terms, and few ask
            terms = [(work.coefficient, list(work.factors)) for work in self._made]
            self._traffic = self._products(terms)
        return self._traffic(np.asarray(widths, dtype=np.float64))

    def _dims(self, record: Record, name: str, tensor: Tensor) -> list[IntArray]:
        dims = range(tensor.ndim if (name, 0) in record.parameter_ids else 0)
        return [record.parameter_ids[name, dim] for dim in dims]

    def _products(self, terms: Sequence[tuple[int, list[IntArray]]]) -> "_Products":
        return _Products(terms, self._grouping)


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
