"""Errors: each message says what was wrong, why it matters and what to write instead.

Every error derives from `DynoptError` and from the built-in error that it resembles. So both
`except DynoptError` and, for example, `except ValueError` catch what a reader expects.

Messages quote input, which may be of any size. So every message is shortened when it is shown, and
`short` shortens a single value that a message quotes.
"""

import difflib
import itertools
import reprlib
from collections.abc import Iterable
from typing import Any

_MOST_CHARACTERS = 4_000
_MOST_NAMES = 50
# The closest match is searched among names of usual length: it takes longer the longer they are.
_LONGEST_NAME = 100
_MOST_COMPARED = 2_000


class DynoptError(Exception):
    """The base of every error that dynopt_ray raises on purpose."""

    def __str__(self) -> str:
        # `KeyError.__str__` would print the repr of the message, quotes and all.
        return shortened(Exception.__str__(self))


class UnknownNameError(DynoptError, KeyError):
    """A name is unknown; the message lists the known names and the closest match."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(
            f"no {kind} {short(name)}.{did_you_mean(name, names)} Known: {listed(names) or 'none'}."
        )
        self._arguments = (kind, name, names)

    def __reduce__(self) -> tuple[type["UnknownNameError"], tuple[str, str, list[str]]]:
        # Errors are pickled between processes; by default __init__ would get only the message.
        return type(self), self._arguments


class PluginError(DynoptError, ImportError):
    """A plugin cannot be imported, or is not what its family needs."""


class SpecError(DynoptError, ValueError):
    """A spec has a wrong key, type or value."""


class DataError(DynoptError, ValueError):
    """Data cannot be learned from: they are not finite, out of range or of the wrong shape."""


class TraceError(DynoptError, RuntimeError):
    """A network cannot be traced."""


class EditError(DynoptError, ValueError):
    """A plan cannot be applied; nothing has been changed."""


class MissingGradientError(DynoptError, RuntimeError):
    """A criterion needs gradients or data that are missing."""


class CriterionError(DynoptError, ValueError):
    """A criterion cannot score some part of this network."""


class BudgetError(DynoptError, ValueError):
    """No allowed plan can meet a budget."""


class CheckpointError(DynoptError, ValueError):
    """A checkpoint is truncated, altered, foreign, does not fit or cannot be written.

    Nothing has been loaded.
    """


class DivergedError(DynoptError, ArithmeticError):
    """A loss, or another value that the network computes, is NaN or infinite."""


class ClusterError(DynoptError, RuntimeError):
    """A cluster cannot be reached, or lacks the resources that were asked for."""


class DeviceError(DynoptError, RuntimeError):
    """A device that was asked for is missing or unknown."""


class SearchError(DynoptError, RuntimeError):
    """No trial of a search finished."""


class RunError(DynoptError, ValueError):
    """A run directory exists already, is missing, is damaged or cannot be written."""


class LearnerError(DynoptError, RuntimeError):
    """An online learner cannot continue: it is out of sequence, overloaded or broken."""


def described(error: BaseException) -> str:
    """Return an error as text: its type unless it is our own, its message, and its notes."""
    kind = "" if isinstance(error, DynoptError) else f"{type(error).__name__}: "
    return shortened(" ".join([f"{kind}{_message(error)}", *getattr(error, "__notes__", ())]))


def _message(error: BaseException) -> str:
    """Return the message of an error; a user's own kind of error may be unable to give it."""
    try:
        return str(error)
    except Exception as other:
        return f"(its message cannot be shown: {type(other).__name__})"


def shortened(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return a text of at most `most` characters: the middle of a longer one is left out."""
    if len(text) <= most:
        return text
    gap = " … "
    end = most // 4
    return f"{text[: most - end - len(gap)]}{gap}{text[len(text) - end :]}"


def short(value: Any) -> str:
    """Return a value for a message: its repr, shortened if it is long or deeply nested."""
    shortener = reprlib.Repr()
    shortener.maxlevel = 3
    shortener.maxstring = shortener.maxother = 60
    try:
        return shortened(shortener.repr(value), 400)
    except ValueError:  # the repr of a whole number with thousands of digits
        return f"a {type(value).__name__} that is too long to show"


def listed(names: Iterable[str]) -> str:
    """Return names separated by commas; if there are many, the first ones and their number."""
    every = list(names)
    shown = [shortened(name, _LONGEST_NAME) for name in every[:_MOST_NAMES]]
    more = len(every) - len(shown)
    return ", ".join([*shown, f"… and {more:,} more"] if more else shown)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the sentence ` Did you mean 'x'?`, or an empty string if no known name is close."""
    if len(name) > _LONGEST_NAME:
        return ""
    usual = (other for other in known if len(other) <= _LONGEST_NAME)
    compared = list(itertools.islice(usual, _MOST_COMPARED))
    close = difflib.get_close_matches(name, compared, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
