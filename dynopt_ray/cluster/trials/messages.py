"""What a search and the processes that run its trials say to each other. Nothing here imports Ray.

The search sends commands to a process, which carries them out and answers with events. A trial that
was started or continued runs up to its next measurement, its end or an error, and then waits for
the next command. So a decision about a trial never comes too late.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StartTrial:
    """Start a trial, or continue it in this process.

    Attributes:
        number: the trial's place in the order of drawing, from 0.
        config: its configuration.
        report: the number of measurements that the search knows already.
        elapsed_s: the time that the trial has run for, in seconds, up to the last of them.
    """

    number: int
    config: Mapping[str, Any]
    report: int = 0
    elapsed_s: float = 0.0


@dataclass(frozen=True)
class ContinueTrial:
    """Run a trial up to its next measurement."""

    number: int


@dataclass(frozen=True)
class StopTrial:
    """End a trial whose result nobody needs, or that is continued elsewhere."""

    number: int


@dataclass(frozen=True)
class FinishTrial:
    """End a trial that made its final measurement.

    Attributes:
        number: the trial.
        keep: whether to give its network.
    """

    number: int
    keep: bool


@dataclass(frozen=True)
class TrialMeasured:
    """A trial made a measurement, and waits.

    Attributes:
        number: the trial.
        report: the number of measurements so far, from 1.
        row: the figures; see `Measurement.row`.
        elapsed_s: the time that the trial has run for, in seconds, in all processes together.
        has_state: whether its state after this measurement is stored.
        has_network: whether the trial can give a network.
        row_scores: the scores of validation rows, if the measurement is final and has them.
        state: the state, if this process cannot store it itself.
    """

    number: int
    report: int
    row: dict[str, Any]
    elapsed_s: float
    has_state: bool = False
    has_network: bool = False
    row_scores: list[float] | None = field(default=None, repr=False)
    state: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class TrialEnded:
    """A trial has ended.

    Attributes:
        number: the trial.
        note: why it ended without a final measurement; empty if it made one.
        network: its network, if it was asked for one.
    """

    number: int
    note: str = ""
    network: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class TrialFailed:
    """A trial raised an error, which is `error`."""

    number: int
    error: str


TrialCommand = StartTrial | ContinueTrial | StopTrial | FinishTrial
TrialEvent = TrialMeasured | TrialEnded | TrialFailed
