"""Runs trials, one measurement at a time, in a process of a cluster or in the driver itself."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynopt_ray.cluster.trials.messages import (
    ContinueTrial,
    FinishTrial,
    StartTrial,
    StopTrial,
    TrialCommand,
    TrialEnded,
    TrialEvent,
    TrialFailed,
    TrialMeasured,
)
from dynopt_ray.cluster.trials.trial import UNFINISHED, Measurement, Trial, failure, measured
from dynopt_ray.cluster.trials.trial_files import TrialFiles, packed
from dynopt_ray.errors import SearchError, did_you_mean

# A state is stored if the trial has run for this many times as long as storing the last one took.
# So trials spend at most a twentieth of their time on it.
_RUN_PER_SAVE = 20


@dataclass
class WorkerConfig:
    """What a worker needs to know.

    Attributes:
        cost_weight: λ of utility = accuracy − λ · cost.
        files: where states and networks are stored; None stores no states.
        probe: the name of a file in this store. A worker that does not find it sends its files to
            the driver, which stores them. None never stores here.
        every_state: whether to store every state, as schedulers that pause trials need.
        time_limit_s: the time after which a trial is ended at its next measurement, in seconds.
        cpus: the cores that a trial holds; it uses one thread for each.
        gpus: the GPUs that a trial holds.
        deterministic: whether the same operations give the same bits; see `Determinism`.
        figures: the figures that every final measurement must have.
    """

    cost_weight: float
    files: TrialFiles | None = None
    probe: str | None = None
    every_state: bool = False
    time_limit_s: float | None = None
    cpus: float = 1
    gpus: float = 0
    deterministic: bool = False
    figures: tuple[str, ...] = ()


@dataclass
class _RunningTrial:
    number: int
    rows: Iterator[Measurement]
    report: int
    known: int
    elapsed_s: float
    last: Measurement | None = None
    saved_at: float = field(default_factory=time.monotonic)
    save_s: float = 0.0


class TrialWorker:
    """Runs one or more trials at a time.

    Args:
        trial: runs one configuration.
        config: what else it needs to know.
    """

    def __init__(self, trial: Trial, config: WorkerConfig) -> None:
        self._trial = trial
        self._config = config
        self._members: dict[int, _RunningTrial] = {}
        self._sees_files = (
            config.files is not None
            and config.probe is not None
            and config.probe in config.files.store.names(config.probe.rpartition("/")[0])
        )

    def where(self) -> str:
        """Return the machine and the process, and so tell that the worker is ready."""
        return f"{socket.gethostname()} (process {os.getpid()})"

    def advance(self, commands: Sequence[TrialCommand]) -> list[TrialEvent]:
        """Carry out commands, and return what happened: one event for each that is not a stop."""
        events: list[TrialEvent] = []
        for command in commands:
            match command:
                case StartTrial():
                    events.append(self._guarded(command.number, lambda c=command: self._start(c)))
                case ContinueTrial(number):
                    events.append(self._guarded(number, lambda n=number: self._next(n)))
                case FinishTrial(number, keep):
                    events.append(self._guarded(number, lambda n=number, k=keep: self._end(n, k)))
                case StopTrial(number):
                    self._close(number)
        return events

    def _guarded(self, number: int, step: Any) -> TrialEvent:
        try:
            event: TrialEvent = step()
        except (Exception, SystemExit) as error:
            # An error ends only its own trial.
            self._close(number)
            return TrialFailed(number, failure(error))
        return event

    def _start(self, command: StartTrial) -> TrialEvent:
        report, state = 0, None
        if self._config.files is not None and command.report:
            found = self._config.files.state(command.number, command.report)
            if found is not None:
                report, state = found
        self._members[command.number] = _RunningTrial(
            number=command.number,
            rows=measured(self._trial, command.config, state),
            report=report,
            known=command.report,
            elapsed_s=command.elapsed_s,
        )
        return self._next(command.number)

    def _next(self, number: int) -> TrialEvent:
        """Run a trial up to its next measurement that the search does not know yet."""
        member = self._members[number]
        begun = time.monotonic()
        while True:
            measurement = next(member.rows, None)
            if measurement is None:
                self._close(number)
                return TrialEnded(number, note=UNFINISHED)
            row = measurement.row(self._config.cost_weight)
            if measurement.final:
                self._check(row)
            member.report += 1
            if member.report > member.known:
                break
        member.last = measurement
        member.elapsed_s += time.monotonic() - begun
        limit = self._config.time_limit_s
        if limit is not None and member.elapsed_s > limit and not measurement.final:
            self._close(number)
            return TrialEnded(number, note=over_time(limit))
        state = None if measurement.final else self._state(member, measurement)
        if state is not None and self._sees_files and self._config.files is not None:
            self._config.files.keep_state(number, member.report, state)
            member.saved_at = time.monotonic()
        return TrialMeasured(
            number=number,
            report=member.report,
            row=row,
            elapsed_s=member.elapsed_s,
            has_state=state is not None,
            has_network=measurement.final and measurement.network is not None,
            row_scores=_rounded(measurement.row_scores) if measurement.final else None,
            state=None if self._sees_files else state,
        )

    def _check(self, row: dict[str, Any]) -> None:
        """Refuse a final measurement without a figure that the search looks for.

        Raises:
            SearchError: the message names the figure and those that there are.
        """
        for name in self._config.figures:
            if name not in row:
                known = sorted(row.keys() - {"final"})
                raise SearchError(
                    f"the trial measured no {name!r}, which the search looks for."
                    f"{did_you_mean(name, known)} It measured {', '.join(known)}"
                )

    def _state(self, member: _RunningTrial, measurement: Measurement) -> bytes | None:
        """Return the state to store, or None if there is none or it is too early for the next."""
        if measurement.state is None or self._config.files is None:
            return None
        begun = time.monotonic()
        if not self._config.every_state and begun - member.saved_at < _RUN_PER_SAVE * member.save_s:
            return None
        content = packed(dict(measurement.state()))
        member.save_s = time.monotonic() - begun
        return content

    def _end(self, number: int, keep: bool) -> TrialEvent:
        last = self._members[number].last
        network = last.network() if keep and last is not None and last.network else None
        if network is not None and self._sees_files and self._config.files is not None:
            self._config.files.keep_network(number, network)
            network = None
        self._close(number)
        return TrialEnded(number, network=network)

    def _close(self, number: int) -> None:
        member = self._members.pop(number, None)
        close = getattr(member.rows, "close", None) if member is not None else None
        if close is not None:
            close()


def _rounded(scores: Sequence[float] | None) -> list[float] | None:
    return None if scores is None else [round(float(score), 4) for score in scores]


def over_time(limit_s: float) -> str:
    """Return why a trial was ended that ran for longer than the limit."""
    return f"the trial ran for longer than its limit of {limit_s:g} s"
