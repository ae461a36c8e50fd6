"""The peak memory of a forward pass."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operations create, for as long as the tensors exist.

    Views and in-place results share memory that is already counted. Works on the meta device, too.

    Attributes:
        peak_bytes: the largest number of bytes at one time so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count the memory of new tensors."""
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if not isinstance(leaf, Tensor):
                continue
            storage, key = leaf.untyped_storage(), _address(leaf)
            if key not in given and key not in self._held:
                self._held[key] = storage.nbytes()
                weakref.finalize(storage, self._held.pop, key, None)
        self.peak_bytes = max(self.peak_bytes, sum(self._held.values()))
        return out


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
