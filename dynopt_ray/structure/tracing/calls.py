"""Calls of a network's modules: what went in and what came out."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        args: its arguments; the first is what it may pass on.
        kwargs: its keyword arguments; the first is, where there are no others.
        output: what it gave.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def first(self) -> Any:
        """What it gives where it does nothing."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    @property
    def num_others(self) -> int | None:
        """How many outputs there are beside the first; None for a tensor."""
        return len(self.output) - 1 if isinstance(self.output, tuple) else None

    @property
    def result(self) -> Any:
        """The first output."""
        return self.output[0] if isinstance(self.output, tuple) else self.output

    @property
    def passes_on(self) -> bool:
        """Whether a tensor goes in and one of the same shape and type comes out."""
        one, other = self.first, self.result
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.shape == other.shape and one.dtype == other.dtype

    def repeated(self, module: nn.Module, first: Tensor) -> Any:
        """Call a module likewise, on another first argument."""
        if self.args:
            return module(first, *self.args[1:], **self.kwargs)
        return module(**{**self.kwargs, next(iter(self.kwargs)): first})


@contextlib.contextmanager
def recorded(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Call]]]:
    """All calls of some modules, by name, while this lasts.

    Tensors are copied: modules may write into what they are given.
    """
    seen: dict[str, list[Call]] = {name: [] for name in names}
    handles = []
    for name, calls in seen.items():
        given: list[tuple[Any, Any]] = []
        module = model.get_submodule(name)

        def enter(_: nn.Module, args: Any, kwargs: Any, given: list[Any] = given) -> None:
            given.append(tree_map_only(Tensor, torch.clone, (args, kwargs)))

        def leave(*call: Any, given: list[Any] = given, calls: list[Call] = calls) -> None:
            args, kwargs = given.pop()
            calls.append(Call(args, kwargs, tree_map_only(Tensor, torch.clone, call[-1])))

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
