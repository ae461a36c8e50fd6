"""Errors: each says what was wrong, why it matters and what to write instead.

Every error derives from `DynoptError` and from the built-in it resembles, so that both
`except DynoptError` and `except ValueError` do what their reader expects.
"""

import difflib
from collections.abc import Iterable


class DynoptError(Exception):
    """Base of every error that dynopt_ray raises on purpose."""

    def __str__(self) -> str:
        # `KeyError.__str__` would print the repr of the message, quotes and all.
        return Exception.__str__(self)


class UnknownNameError(DynoptError, KeyError):
    """A name that is not known, with the known ones and the closest match."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(
            f"no {kind} '{name}'.{did_you_mean(name, names)} Known: {', '.join(names) or 'none'}."
        )
        self._arguments = (kind, name, names)

    def __reduce__(self) -> tuple[type["UnknownNameError"], tuple[str, str, list[str]]]:
        # Errors cross process borders; the default would call __init__ with the message alone.
        return type(self), self._arguments


class PluginError(DynoptError, ImportError):
    """A plugin that cannot be imported or is not what its group needs."""


class SpecError(DynoptError, ValueError):
    """A run specification with a wrong key, type or value."""


class DataError(DynoptError, ValueError):
    """Data that cannot be learned from: non-finite, out of range or of the wrong shape."""


class TraceError(DynoptError, RuntimeError):
    """A network whose forward pass cannot be followed."""


class EditError(DynoptError, ValueError):
    """A plan that cannot be carried out; nothing has been changed."""


class MissingGradientError(DynoptError, RuntimeError):
    """A gradient criterion met a parameter without a gradient."""


class CriterionError(DynoptError, ValueError):
    """A criterion that has no score for something in this network."""


class BudgetError(DynoptError, ValueError):
    """A budget that no allowed edit can meet."""


class CheckpointError(DynoptError, ValueError):
    """A checkpoint that is truncated, altered, foreign or does not fit; nothing was loaded."""


class DivergedError(DynoptError, ArithmeticError):
    """A loss that became NaN or infinite."""


class ClusterError(DynoptError, RuntimeError):
    """A cluster that cannot be reached or cannot hold what was asked of it."""


class SearchError(DynoptError, RuntimeError):
    """A search in which no trial finished."""


class RunError(DynoptError, ValueError):
    """A run directory that exists already, is missing, damaged or cannot be written."""


class LearnerError(DynoptError, RuntimeError):
    """An online learner that cannot go on: out of sequence, overloaded or broken."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The sentence ` Did you mean 'x'?`, or an empty string when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
