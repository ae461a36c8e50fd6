"""Which operations the results of a forward pass depend on.

A pass may compute with units only to look at them: `if h.isnan().any(): raise` reduces over all
units, yet nothing else depends on the reduction. Growth of these units stays exact. So what such
operations noted in `Record.mixed` is dropped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import storage_of
from dynopt_ray.structure.tracing.values.code_places import ValueUse
from dynopt_ray.structure.units import Record


@dataclass(frozen=True, eq=False)
class _Step:
    """One operation: the storages that it reads and may write, and what it noted.

    Views share a storage, so writing to a view counts as writing to the whole tensor.
    """

    reads: Sequence[int | None]
    writes: Sequence[int | None]
    noted: range


class DataFlow:
    """The operations of a forward pass, and the tensors that they read and write."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._used: set[int | None] = {None}
        self._alive: list[Tensor] = []  # so that no storage takes the place of an earlier one

    def add(
        self,
        given: Sequence[Tensor],
        made: Sequence[Tensor],
        noted: range,
        use: ValueUse | None = None,
    ) -> None:
        """Add an operation. Operations on tensors without values are left out: none is read.

        Args:
            given: the tensors that it reads.
            made: the tensors that it returns. If it returns none, it may write to those that it
                reads.
            noted: the indices of what its rule noted in `Record.mixed`.
            use: what the code does with the values that it returns, if it returns no tensor.
        """
        if not given or given[0].is_meta:
            return
        if use is not None:
            self.use(given if use == "value" else ())
            return
        self._alive += [*made, *given]
        reads, writes = ([storage_of(t) for t in tensors] for tensors in (given, made or given))
        self._steps.append(_Step(reads, writes, noted))

    def use(self, tensors: Iterable[Tensor]) -> None:
        """Note that these tensors are results of the pass."""
        self._used.update(storage_of(tensor) for tensor in tensors)

    def drop_unused(self, record: Record) -> None:
        """Drop what the record notes as mixed only by operations without effect on the results."""
        noted: set[int] = set()
        needed: set[int] = set()
        for step in reversed(self._steps):
            noted.update(step.noted)
            if not self._used.isdisjoint(step.writes):
                self._used.update(step.reads)
                needed.update(step.noted)
        unused = noted - needed
        record.mixed = [ids for index, ids in enumerate(record.mixed) if index not in unused]
