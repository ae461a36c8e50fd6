"""Record the calls of a network's modules: their arguments and their outputs."""

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
        args: the positional arguments.
        kwargs: the keyword arguments.
        output: what the module returned.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def first(self) -> Any:
        """The first positional argument, or the first keyword argument if there is none."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    @property
    def num_others(self) -> int | None:
        """The number of outputs after the first; None if the output is not a tuple."""
        return len(self.output) - 1 if isinstance(self.output, tuple) else None

    @property
    def result(self) -> Any:
        """The output, or the first one of a tuple."""
        return self.output[0] if isinstance(self.output, tuple) else self.output

    @property
    def passes_on(self) -> bool:
        """Whether `first` and `result` are tensors of the same shape and dtype."""
        one, other = self.first, self.result
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.shape == other.shape and one.dtype == other.dtype

    def repeated(self, module: nn.Module, first: Tensor) -> Any:
        """Call a module with the same arguments except the first."""
        if self.args:
            return module(first, *self.args[1:], **self.kwargs)
        return module(**{**self.kwargs, next(iter(self.kwargs)): first})


@contextlib.contextmanager
def record_calls(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Call]]]:
    """Record all calls of some modules, by name, while the context lasts.

    Tensors are copied, because modules may write into their arguments.
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
