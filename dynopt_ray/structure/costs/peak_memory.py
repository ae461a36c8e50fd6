"""How much memory a forward pass takes."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of what operations make, while it is held.

    Views and in-place results are part of what they share memory with. Works without data too.

    Attributes:
        peak_bytes: the most at one time so far.
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
        """Run the operation and count what is new."""
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
