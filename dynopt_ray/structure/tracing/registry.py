"""The registry of rules: which rule traces which operation."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

OperationRule = Callable[..., None]

RULES: dict[Callable[..., Any], OperationRule] = {}
"""Operation, as a `TorchFunctionMode` receives it -> its rule."""

KEEPS_ZEROS: set[Callable[..., Any]] = set()
"""Operations whose result is zero wherever an operand is zero."""

JOINS_ZEROS: set[Callable[..., Any]] = set()
"""Operations that place their operands side by side, so zeros in all of them give zeros."""

SELECTS: set[Callable[..., Any]] = set()
"""Operations that take some coordinates of a tensor and leave the others unread."""

_NAMESPACES = (torch, torch.Tensor, torch.nn.functional, torch.special, torch.linalg, torch.fft)


def rule(*operations: str | Callable[..., Any]) -> Callable[[OperationRule], OperationRule]:
    """Register a function as the rule of some operations: how unit ids flow through them.

    The rule is called with the `Trace`, the operation's output and the operation's own arguments.
    It ties ids that must belong to the same unit and labels the output; see
    docs/operation_rules.md.

    Args:
        operations: names of torch functions and tensor methods, or the operations themselves: an
            operator of `torch.ops`, a result of `torch.library.custom_op`, or a function that
            passes itself to `torch.overrides.handle_torch_function`.

    Raises:
        ValueError: torch has no operation of this name.
    """

    def register(function: OperationRule) -> OperationRule:
        for operation in operations:
            found = [*_operations(operation)]
            if not found:
                raise ValueError(f"torch has no operation {operation!r}")
            RULES.update(dict.fromkeys(found, function))
        return function

    return register


def keeps_zeros(*names: str) -> None:
    """Register operations whose result is zero wherever an operand is zero."""
    KEEPS_ZEROS.update(operation for name in names for operation in _operations(name))


def joins_zeros(*names: str) -> None:
    """Register operations that place their operands side by side."""
    JOINS_ZEROS.update(operations(*names))


def selects(*names: str) -> None:
    """Register operations that take some coordinates of a tensor and leave the others unread."""
    SELECTS.update(operations(*names))


def operations(*names: str) -> frozenset[Callable[..., Any]]:
    """Return all callables as which these operations may reach a `TorchFunctionMode`."""
    return frozenset(operation for name in names for operation in _operations(name))


def with_in_place(*names: str) -> tuple[str, ...]:
    """Return the names of operations, and those of their in-place forms if torch has them."""
    return (*names, *(f"{n}_" for n in names if hasattr(torch.Tensor, f"{n}_")))


def _operations(operation: str | Callable[..., Any]) -> Iterable[Callable[..., Any]]:
    """Yield all callables as which an operation may reach a `TorchFunctionMode`."""
    if not isinstance(operation, str):
        yield operation
        packet = getattr(getattr(operation, "_opoverload", operation), "overloadpacket", operation)
        if isinstance(packet, torch._ops.OpOverloadPacket):
            yield packet
            overloads: Any = packet.overloads  # untyped in torch
            yield from (getattr(packet, name) for name in overloads())
        return
    for namespace in _NAMESPACES:
        found: Any = getattr(namespace, operation, None)
        if callable(found):
            yield found
        elif inspect.isdatadescriptor(found):
            # A property (x.T) reaches the mode as its getter.
            yield getattr(found, "__get__")  # noqa: B009
