"""The code of module classes, as far as it can be read.

Classes are typed as `Any`: mypy takes the hash of a module for that of its class.
"""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

_MAKES_TENSOR = re.compile(r"(new_)?(zeros|ones|empty|full|rand|randn|normal)|new$|\w*Tensor$")
_NOT_READ = frozenset(("torch", "builtins", "typing"))


@functools.cache
def class_code(kind: Any) -> Sequence[ast.Module]:
    """Return the code of a class and of its bases, except those of torch.

    Code that was typed into a console has no source and is left out.
    """
    trees = []
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in _NOT_READ:
            continue
        try:
            trees.append(ast.parse(textwrap.dedent(inspect.getsource(base))))
        except (OSError, TypeError, SyntaxError):
            continue
    return tuple(trees)


def methods_of(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Yield all functions in the code of a class except its `__init__`."""
    for method in ast.walk(tree):
        if isinstance(method, ast.FunctionDef) and method.name != "__init__":
            yield method


def called_name(call: ast.Call) -> str:
    """Return the last part of the name of a called function."""
    name: str = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return name


def makes_tensor(call: ast.Call) -> bool:
    """Return whether a called function makes a tensor of given sizes, as far as its name tells."""
    return bool(_MAKES_TENSOR.match(called_name(call)))


@functools.cache
def attributes_used(kind: Any) -> frozenset[str]:
    """Return the names of all attributes that the methods of a class read, `__init__` apart."""
    return frozenset(
        node.attr
        for tree in class_code(kind)
        for method in methods_of(tree)
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    )


def may_use(kind: Any, attribute: str) -> bool:
    """Return whether methods of a class read an attribute of this name, or choose one by a name."""
    return attribute in attributes_used(kind) or _begins_like_a_name_of(kind, attribute)


def _begins_like_a_name_of(kind: Any, attribute: str) -> bool:
    return any(attribute.startswith(beginning) for beginning in _computed_names(kind))


@functools.cache
def _computed_names(kind: Any) -> frozenset[str]:
    """Return how the names begin that the methods of a class compute for `getattr`."""
    return frozenset(
        _beginning(node.args[1])
        for tree in class_code(kind)
        for method in methods_of(tree)
        for node in ast.walk(method)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "getattr"
        and len(node.args) > 1
    )


def _beginning(name: ast.expr) -> str:
    """Return the constant text with which a computed name begins."""
    if isinstance(name, ast.JoinedStr):
        name = name.values[0]
    while isinstance(name, ast.BinOp):  # "head_" + task
        name = name.left
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else ""
