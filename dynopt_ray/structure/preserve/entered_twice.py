"""Contexts that are left properly even if Ctrl-C interrupts their exit."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

Result = TypeVar("Result")


def within(context: AbstractContextManager[object], body: Callable[[], Result]) -> Result:
    """Run a function in a context that is entered twice, and return its result.

    Ctrl-C may arrive at any line, also before the first line of an exit. If it interrupts the
    inner exit, the outer exit takes it for an error of the body and does the work. No context
    manager around `context` could do the same, because its own exit could be interrupted.

    Args:
        context: a context that may be entered twice, and whose exit continues where an
            interrupted one stopped.
        body: runs inside.
    """
    with context, context:
        return body()
