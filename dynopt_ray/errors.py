"""Errors: each message says what was wrong, why it matters and what to write instead.

Every error derives from `DynoptError` and from the built-in error that it resembles. So both
`except DynoptError` and, for example, `except ValueError` catch what a reader expects.
"""

import difflib
from collections.abc import Iterable


class DynoptError(Exception):
    """The base of every error that dynopt_ray raises on purpose."""

    def __str__(self) -> str:
        # `KeyError.__str__` would print the repr of the message, quotes and all.
        return Exception.__str__(self)


class UnknownNameError(DynoptError, KeyError):
    """A name is unknown; the message lists the known names and the closest match."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(
            f"no {kind} '{name}'.{did_you_mean(name, names)} Known: {', '.join(names) or 'none'}."
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


class SearchError(DynoptError, RuntimeError):
    """No trial of a search finished."""


class RunError(DynoptError, ValueError):
    """A run directory exists already, is missing, is damaged or cannot be written."""


class LearnerError(DynoptError, RuntimeError):
    """An online learner cannot continue: it is out of sequence, overloaded or broken."""


def described(error: BaseException) -> str:
    """Return an error as text: its type unless it is our own, its message, and its notes."""
    kind = "" if isinstance(error, DynoptError) else f"{type(error).__name__}: "
    return " ".join([f"{kind}{error}", *getattr(error, "__notes__", ())])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the sentence ` Did you mean 'x'?`, or an empty string if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
