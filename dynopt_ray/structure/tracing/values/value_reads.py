"""The values that a forward pass reads, and by which it may decide what to run.

A trace follows what the example inputs decide. When the network is traced again at another width,
it must decide the same: other operations would tie other units. So the first trace records every
value that leaves torch (`bool(t)`, `t.item()`), and every index on which the size of a result
depends (`x[mask]`, `nonzero`). A second trace gets the recorded values in the same order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import operations
from dynopt_ray.structure.tracing.values.code_places import CodePlace, ValueUse, calling_place

TorchOperation = Callable[..., Any]

LEAVES = operations("numpy", "__array__", "tolist")
"""Operations that return all values of a tensor."""

READS = LEAVES | operations(
    *("__bool__", "is_nonzero", "equal", "allclose", "__contains__"),
    *("__float__", "__int__", "__index__", "__complex__", "item"),
)
"""Operations that return values of a tensor as Python objects."""

_WHERE = operations("where")
_SIZED_BY_VALUES = operations(
    "nonzero", "argwhere", "unique", "unique_consecutive", "bincount", "masked_select"
)
_INDEXING = operations("__getitem__", "__setitem__")
_NO_PLACE = "code of torch"


class OtherWayError(RuntimeError):
    """A forward pass read other values than before, so it ran other operations."""


@dataclass(frozen=True, eq=False)
class ValueRead:
    """A value that a forward pass read.

    Attributes:
        operation: the operation that read it.
        shapes: the shapes of the tensors that it read.
        value: what it returned, or the index that it used.
        place: where in the code.
        use: what the code does with the value.
    """

    operation: TorchOperation
    shapes: Sequence[torch.Size]
    value: Any
    place: CodePlace | None
    use: ValueUse


class ValueReads:
    """The values that a forward pass reads, in order.

    Args:
        known: the values that an earlier pass read, to be repeated; None for the first pass.

    Attributes:
        seen: the values read so far.
        branches: the places of code that decides by a value, or may do so, and other sources of
            decisions. A guard, which only raises or reports, is no branch.
    """

    def __init__(self, known: Sequence[ValueRead] | None = None) -> None:
        self._known = known
        self._from_values: dict[int, Tensor] = {}
        self._decides = True
        self.seen: list[ValueRead] = []
        self.branches: dict[CodePlace | str, None] = {}

    def repeated(self) -> "ValueReads":
        """Return reads that repeat these values in another pass."""
        return ValueReads(self.seen)

    def run(
        self,
        func: TorchOperation,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        decides: bool = True,
    ) -> Any:
        """Run an operation. If it reads values, record them, or repeat those recorded.

        Args:
            func: the operation.
            args: its arguments.
            kwargs: its keyword arguments.
            decides: whether the code may decide by what it reads. Fake quantisers do not: they read
                their own switches.
        """
        self._decides = decides
        if func in READS:
            return self._read(func, args, kwargs)
        if func in _SIZED_BY_VALUES or (func in _WHERE and len(args) + len(kwargs) == 1):
            return self._sized(self._read(func, args, kwargs))
        if func in _INDEXING and any(map(_is_value, _items(args[1]))):
            return self._indexed(func, args, kwargs)
        return func(*args, **kwargs)

    def note_size(self, tensor: Tensor) -> None:
        """Note that code asks for the size of a tensor, and decides by it if it stems from values.

        An expert without tokens is skipped in this way: `if rows.numel() == 0: continue`.
        """
        if id(tensor) in self._from_values and self._known is None:
            place, use = calling_place()
            if use == "branch":
                self.branches[place or _NO_PLACE] = None

    def _read(self, func: TorchOperation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        shapes = [tensor.shape for tensor in tensors_in((args, kwargs))]
        known = self._repeated(func)
        if known is not None and known.shapes == shapes:
            return _copied(known.value)
        value = func(*args, **kwargs)
        if known is None:
            self._record(func, shapes, _copied(value))
        return value

    def _indexed(self, func: TorchOperation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Index a tensor by masks, or by slices whose bounds are tensors."""
        items = _items(args[1])
        shapes = [tensor.shape for tensor in tensors_in(items)]
        known = self._repeated(func)
        if known is None:
            known = self._record(func, shapes, _copied([*map(_plain, items)]))
        if known.shapes == shapes:
            items = known.value
        return self._sized(func(args[0], tuple(items), *args[2:], **kwargs))

    def _sized(self, out: Any) -> Any:
        self._from_values.update((id(tensor), tensor) for tensor in tensors_in(out))
        return out

    def _record(self, func: TorchOperation, shapes: Sequence[torch.Size], value: Any) -> ValueRead:
        place, use = calling_place()
        read = ValueRead(func, shapes, value, place, use or "value")
        if self._decides and (use == "branch" or (use is None and func in READS)):
            self.branches[place or _NO_PLACE] = None
        self.seen.append(read)
        return read

    def _repeated(self, func: TorchOperation) -> ValueRead | None:
        """Return what the earlier pass read here; None in the first pass."""
        if self._known is None:
            return None
        index = len(self.seen)
        if index == len(self._known) or self._known[index].operation is not func:
            place, _ = calling_place()
            raise OtherWayError(f"it decides by other values at {place}")
        self.seen.append(self._known[index])
        return self.seen[-1]


def _items(index: Any) -> Sequence[Any]:
    return index if isinstance(index, tuple) else (index,)


def _is_value(item: Any) -> bool:
    """Return whether the values of an index determine how much it selects."""
    if isinstance(item, slice):
        return any(isinstance(edge, Tensor) for edge in (item.start, item.stop, item.step))
    return isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)


def _plain(item: Any) -> Any:
    """Return an index whose slices have plain numbers as bounds."""
    if not isinstance(item, slice):
        return item
    edges = (item.start, item.stop, item.step)
    return slice(*(int(edge) if isinstance(edge, Tensor) else edge for edge in edges))


def _copied(value: Any) -> Any:
    """Return a copy that later changes of the value do not reach."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple | list):
        return type(value)(_copied(item) for item in value)
    return value.copy() if isinstance(value, np.ndarray) else value
