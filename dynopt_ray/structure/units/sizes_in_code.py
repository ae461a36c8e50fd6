"""Sizes of tensors that methods outside of the forward pass make, as their code states them.

`sample` of a variational autoencoder draws from `torch.randn(n, self.latent)`. If `latent` is a
plain attribute, it follows the width (see `outside_forward`). A literal, an entry of a dict, a
field of a configuration and what a property computes cannot follow. They are found by reading the
code and evaluating the expressions of the sizes.
"""

import ast
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dynopt_ray.structure.units.class_code import class_code, makes_tensor, methods_of

_Attribute = tuple[str, str]
"""The name of a module, and that of an attribute."""


@dataclass(frozen=True)
class StatedSize:
    """A size that a method states.

    Attributes:
        method: the class and the method.
        code: the expression.
        value: its present value.
        may_follow: whether it is a plain attribute of a module, which `outside_forward` judges.
    """

    method: str
    code: str
    value: int
    may_follow: bool


def stated_sizes(model: nn.Module) -> Iterator[StatedSize]:
    """Yield the sizes that methods of a network's modules state, the forward pass apart."""
    names = {module: name for name, module in model.named_modules()}
    for module in names:
        kind: Any = type(module)
        for method, expression in _sizes_of(kind):
            value, place = _evaluated(module, expression, names)
            if type(value) is int:
                code = ast.unparse(expression)
                plain = place is not None and not place[1].startswith("_")
                yield StatedSize(f"{kind.__name__}.{method}", code, value, plain)


@functools.cache
def _sizes_of(kind: Any) -> Sequence[tuple[str, ast.expr]]:
    """Return the sizes that the methods of a class state: the methods' names and expressions."""
    methods = {m.name: m for tree in reversed(class_code(kind)) for m in methods_of(tree)}
    reached = {"forward"}
    for _ in methods:
        reached |= {
            node.attr
            for name in reached & methods.keys()
            for node in ast.walk(methods[name])
            if isinstance(node, ast.Attribute)
        }
    return tuple(
        (name, argument)
        for name, method in methods.items()
        if name not in reached
        for call in ast.walk(method)
        if isinstance(call, ast.Call) and makes_tensor(call)
        for argument in _flat(call.args)
    )


def _flat(arguments: Sequence[ast.expr]) -> Iterator[ast.expr]:
    for argument in arguments:
        if isinstance(argument, ast.Tuple | ast.List):
            yield from argument.elts
        else:
            yield argument


def _evaluated(
    module: nn.Module, expression: ast.expr, names: dict[nn.Module, str]
) -> tuple[Any, _Attribute | None]:
    """Return the value of a chain of attributes and entries, and the attribute that it ends in."""
    if isinstance(expression, ast.Constant):
        return expression.value, None
    if isinstance(expression, ast.Name):
        return (module, None) if expression.id == "self" else (None, None)
    if isinstance(expression, ast.Subscript) and isinstance(expression.slice, ast.Constant):
        owner, _ = _evaluated(module, expression.value, names)
        key = expression.slice.value
        held = isinstance(owner, dict) and key in owner
        held |= isinstance(owner, tuple | list) and type(key) is int and key < len(owner)
        return (owner[key] if held else None), None
    if not isinstance(expression, ast.Attribute):
        return None, None
    owner, _ = _evaluated(module, expression.value, names)
    if owner is None:
        return None, None
    computed = getattr(type(owner), expression.attr, None)
    if isinstance(computed, property):
        return _of_property(owner, computed, names)
    value = getattr(owner, expression.attr, None)
    known = isinstance(owner, nn.Module) and owner in names
    return value, (names[owner], expression.attr) if known else None


def _of_property(
    owner: Any, computed: property, names: dict[nn.Module, str]
) -> tuple[Any, _Attribute | None]:
    """Return what a property returns, and the attribute that it reads if it does only that."""
    if not isinstance(owner, nn.Module) or computed.fget is None:
        return None, None
    kind: Any = type(owner)
    for tree in class_code(kind):
        for method in methods_of(tree):
            if method.name == computed.fget.__name__ and isinstance(method.body[-1], ast.Return):
                returned = method.body[-1].value
                return (None, None) if returned is None else _evaluated(owner, returned, names)
    return None, None
