"""Where in a user's code something happens, and what the code does there with a value."""

import ast
import linecache
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

import torch

ValueUse = Literal["guard", "branch", "value"]
"""What code does with a value: raise or report if it is wrong, decide by it, or compute with it."""

_OWN = str(Path(__file__).parents[2])
_TORCH = str(Path(torch.__file__).parent)
_REPORTS = frozenset(
    ("print", "warn", "warn_once", "debug", "info", "warning", "warning_once", "error", "log")
)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef)
_JUMPS = (ast.Return, ast.Yield, ast.YieldFrom, ast.Break, ast.Continue)
_HARMLESS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.If, ast.Pass)
_Span = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class CodePlace:
    """A line of code.

    Attributes:
        file: the path of the file.
        line: the number of the line.
        function: the name of the function.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} (in {self.function})"


def calling_place() -> tuple[CodePlace | None, ValueUse | None]:
    """Return where the caller's caller is called from outside this package, and with what use.

    The use is None if the code does not show it. A value that a function returns, or that a
    function of torch reads, is used by the caller of the function.
    """
    place: CodePlace | None = None
    for frame in _frames(sys._getframe(2)):
        in_torch = frame.f_code.co_filename.startswith(_TORCH)
        if not in_torch and place is None:
            place = CodePlace(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)
        use, passes_on = _use_in(frame)
        if use is not None or not (in_torch or passes_on):
            return place, use
    return place, None


def place_of_error(error: BaseException) -> CodePlace | None:
    """Return the innermost line outside torch and this package that an error went through."""
    found = None
    for traceback in _tracebacks(error.__traceback__):
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith((_TORCH, _OWN)):
            found = CodePlace(code.co_filename, traceback.tb_lineno, code.co_qualname)
    return found


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frames outside this package that called a frame of it, innermost first."""
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    while frame is not None and not frame.f_code.co_filename.startswith(_OWN):
        yield frame
        frame = frame.f_back


def _tracebacks(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _use_in(frame: FrameType) -> tuple[ValueUse | None, bool]:
    """Return the use of a value where a frame stands, and whether the frame returns the value."""
    here = _position(frame)
    outline = _outline(frame.f_code.co_filename)
    # The innermost come first.
    conditions = (c for c in outline.conditions if c.whole == here or _covers(c.test, here))
    condition = next(conditions, None)
    variable = next((v for v in outline.variables if _covers(v[0], here)), None)
    if variable and (condition is None or condition.test[0] <= variable[0][0]):
        return _use_of_variable(*variable[1:], outline), False
    if condition is not None:
        return _use(condition.node, condition.scope), False
    return None, any(_covers(whole, here) for whole in outline.returns)


def _use_of_variable(name: str, scope: ast.AST, outline: "_Outline") -> ValueUse | None:
    """Return the use of a value that is assigned to a variable."""
    complaints = {id(n) for node in ast.walk(scope) if _complains(node) for n in ast.walk(node)}
    found = [n for n in ast.walk(scope) if isinstance(n, ast.Name) and n.id == name]
    if sum(isinstance(node.ctx, ast.Store) for node in found) > 1:
        return None
    uses: set[ValueUse | None] = set()
    for node in found:
        around = [c for c in outline.conditions if _covers(c.test, _span(node))]
        if id(node) in complaints:
            uses.add("guard")
        elif around:
            uses.add(_use(around[0].node, around[0].scope))
        elif isinstance(node.ctx, ast.Load):
            uses.add(None)
    if None in uses or not uses:
        return None
    return "guard" if uses == {"guard"} else "branch"


def _position(frame: FrameType) -> _Span:
    positions = list(frame.f_code.co_positions())
    line, last_line, column, last_column = positions[frame.f_lasti // 2]
    start = (line or frame.f_lineno, column or 0)
    return start, (last_line or start[0], last_column or start[1])


@dataclass(frozen=True, eq=False)
class _Condition:
    """An expression by which code decides.

    Attributes:
        test: where the expression is.
        whole: where the statement or expression is that decides by it. The jump has this position
            in some versions of Python, and that of the test in others.
        node: the statement or expression.
        scope: the function or file in which it is.
    """

    test: _Span
    whole: _Span
    node: ast.AST
    scope: ast.AST


@dataclass(frozen=True, eq=False)
class _Outline:
    """What code does with values, in one file.

    Attributes:
        conditions: the conditions, inner ones before outer ones.
        variables: for each assignment to a variable, inner ones before outer ones: where it is,
            the variable, its scope.
        returns: where functions return values.
    """

    conditions: Sequence[_Condition] = ()
    variables: Sequence[tuple[_Span, str, ast.AST]] = ()
    returns: Sequence[_Span] = ()


@lru_cache(maxsize=64)
def _outline(file: str) -> _Outline:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:  # not Python, e.g. a cell of a notebook with shell commands
        return _Outline()
    scope_of: dict[ast.AST, ast.AST] = {}
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, _SCOPES))]:
        scope_of.update(dict.fromkeys(ast.walk(scope), scope))  # inner scopes come later
    conditions = [
        _Condition(_span(test), _span(node), node, scope)
        for node, scope in scope_of.items()
        for test in _tests(node)
    ]
    variables = [
        (_span(node), target.id, scope)
        for node, scope in scope_of.items()
        for target in _targets(node)
        if isinstance(target, ast.Name)
    ]
    return _Outline(
        sorted(conditions, key=lambda condition: condition.test[0], reverse=True),
        sorted(variables, key=lambda variable: variable[0][0], reverse=True),
        [_span(node) for node in scope_of if isinstance(node, ast.Return)],
    )


def _covers(whole: _Span, part: _Span) -> bool:
    return whole[0] <= part[0] < whole[1]


def _span(node: Any) -> _Span:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _targets(node: ast.AST) -> Sequence[ast.expr]:
    """Return what a piece of code assigns one value to."""
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.NamedExpr | ast.AnnAssign) else []


def _tests(node: ast.AST) -> Iterable[ast.expr]:
    """Yield the expressions by which a piece of code decides."""
    if isinstance(node, ast.Assert | ast.If | ast.While | ast.IfExp):
        yield node.test
    elif isinstance(node, ast.Match):
        yield node.subject
    elif isinstance(node, ast.Expr) and _reports(node):
        yield node.value
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        yield from (test for part in node.generators for test in part.ifs)


def _use(node: ast.AST, scope: ast.AST) -> ValueUse:
    """Return what a statement or expression does with the value by which it decides."""
    bodies = [b for b in (node.body, node.orelse) if b] if isinstance(node, ast.If) else []
    guards = _complains(node) or any(_only_complains(body, scope) for body in bodies)
    return "guard" if guards else "branch"


def _only_complains(body: Sequence[ast.stmt], scope: ast.AST) -> bool:
    """Return whether code raises at its end, or does nothing but print, warn or log.

    Before it reports, it may make the message, in variables that nothing else uses.
    """
    inside = [node for statement in body for node in ast.walk(statement)]
    if isinstance(body[-1], ast.Raise):
        return not any(isinstance(node, _JUMPS) for node in inside)
    if not _reports(body[-1]) or not all(
        isinstance(n, _HARMLESS) or _reports(n) for n in inside if isinstance(n, ast.stmt)
    ):
        return False
    names = [node for node in inside if isinstance(node, ast.Name | ast.Attribute | ast.Subscript)]
    made = [node for node in names if isinstance(node.ctx, ast.Store)]
    own = {node.id for node in made if isinstance(node, ast.Name)}
    known = set(map(id, inside))
    return len(own) == len({ast.dump(node) for node in made}) and not any(
        isinstance(node, ast.Name) and node.id in own and id(node) not in known
        for node in ast.walk(scope)
    )


def _complains(statement: ast.AST) -> bool:
    return isinstance(statement, ast.Raise | ast.Assert) or _reports(statement)


def _reports(statement: ast.AST) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call):
        return False
    name = call.func
    return (isinstance(name, ast.Name) and name.id in _REPORTS) or (
        isinstance(name, ast.Attribute) and name.attr in _REPORTS
    )
