"""How commands print lines."""

import traceback
from collections.abc import Callable

Say = Callable[[str], None]
"""Prints a line as it is, without markup."""


def printable(text: str) -> str:
    """Return a text without control characters, which could rewrite what a terminal shows."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def raised_in(error: BaseException) -> str:
    """Return where an error was raised, for a message that stands in for a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        f"raised in {frames[-1].filename}, line {frames[-1].lineno}" if frames else "no traceback"
    )
