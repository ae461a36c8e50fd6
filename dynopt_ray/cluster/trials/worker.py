"""Runs trials, one measurement at a time, in a process of a cluster or in the driver itself."""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from dynopt_ray.cluster.trials.packs import Advance, TurnTaking, new_pack
from dynopt_ray.cluster.trials.trial import UNFINISHED, Measurement, Trial, failure
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
        figures: the figures that every final measurement must have.
        together: whether trials that can be computed together are; others take turns.
        deterministic: whether the same operations give the same bits; see `Determinism`.
    """

    cost_weight: float
    files: TrialFiles | None = None
    probe: str | None = None
    every_state: bool = False
    time_limit_s: float | None = None
    cpus: float = 1
    gpus: float = 0
    figures: tuple[str, ...] = ()
    together: bool = False
    deterministic: bool = False


@dataclass
class _RunningTrial:
    number: int
    report: int
    known: int
    elapsed_s: float
    saved_at_s: float
    save_s: float
    last: Measurement | None = None


class TrialWorker:
    """Runs one or more trials at a time.

    Args:
        trial: runs one configuration.
        config: what else it needs to know.
    """

    def __init__(self, trial: Trial, config: WorkerConfig) -> None:
        self._pack = new_pack(trial, together=config.together)
        self._config = config
        self._members: dict[int, _RunningTrial] = {}
        # Trials that take turns store their first state, to find out how long it takes. In a pack
        # of many short trials this alone would take longer than the trials.
        self._takes_turns = isinstance(self._pack, TurnTaking)
        self._save_s = 0.0
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
        events: dict[int, TrialEvent] = {}
        due: list[int] = []
        for command in commands:
            match command:
                case StartTrial(number):
                    failed = self._guarded(number, partial(self._start, command))
                    if failed is None:
                        due.append(number)
                    else:
                        events[number] = failed
                case ContinueTrial(number):
                    due.append(number)
                case FinishTrial(number, keep):
                    ended = self._guarded(number, partial(self._end, number, keep))
                    assert ended is not None
                    events[number] = ended
                case StopTrial(number):
                    self._close(number)
        while due:  # trials that are continued may have to make known measurements again
            for number, advance in self._advance_pack(due).items():
                event = self._guarded(number, partial(self._advanced, number, advance))
                if event is not None:
                    events[number] = event
            due = [number for number in due if number not in events]
        order = [c.number for c in commands if not isinstance(c, StopTrial)]
        return [events[number] for number in order]

    def _advance_pack(self, due: Sequence[int]) -> Mapping[int, Advance]:
        try:
            return self._pack.advance(due)
        except (Exception, SystemExit) as error:
            return {number: Advance(None, 0.0, error) for number in due}

    def _guarded(self, number: int, step: Callable[[], TrialEvent | None]) -> TrialEvent | None:
        try:
            return step()
        except (Exception, SystemExit) as error:
            # An error ends only its own trial.
            self._close(number)
            return TrialFailed(number, failure(error))

    def _start(self, command: StartTrial) -> None:
        report, state = 0, None
        if self._config.files is not None and command.report:
            found = self._config.files.state(command.number, command.report)
            if found is not None:
                report, state = found
        begun = time.monotonic()
        self._pack.start(command.number, command.config, state)
        elapsed_s = command.elapsed_s + time.monotonic() - begun
        self._members[command.number] = _RunningTrial(
            number=command.number,
            report=report,
            known=command.report,
            elapsed_s=elapsed_s,
            saved_at_s=elapsed_s,
            save_s=0.0 if self._takes_turns else self._save_s,
        )

    def _advanced(self, number: int, advance: Advance) -> TrialEvent | None:
        """Return what came of a trial; None if it made a measurement that the search knows."""
        member, measurement = self._members[number], advance.measurement
        member.elapsed_s += advance.elapsed_s
        if advance.error is not None:
            raise advance.error
        if measurement is None:
            self._close(number)
            return TrialEnded(number, note=UNFINISHED)
        row = measurement.row(self._config.cost_weight)
        if measurement.final:
            self._check(row)
        member.report += 1
        if member.report <= member.known:
            return None
        member.last = measurement
        limit = self._config.time_limit_s
        if limit is not None and member.elapsed_s > limit and not measurement.final:
            self._close(number)
            return TrialEnded(number, note=over_time(limit))
        state = None if measurement.final else self._state(member, measurement)
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
        """Store and return the state, unless there is none or it is too early for the next."""
        files = self._config.files
        if measurement.state is None or files is None:
            return None
        since_s = member.elapsed_s - member.saved_at_s
        if not self._config.every_state and since_s < _RUN_PER_SAVE * member.save_s:
            return None
        begun = time.monotonic()
        content = packed(dict(measurement.state()))
        if self._sees_files:
            files.keep_state(member.number, member.report, content)
        member.saved_at_s = member.elapsed_s
        member.save_s = self._save_s = time.monotonic() - begun
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
        self._members.pop(number, None)
        self._pack.close(number)


def _rounded(scores: Sequence[float] | None) -> list[float] | None:
    return None if scores is None else [round(float(score), 4) for score in scores]


def over_time(limit_s: float) -> str:
    """Return why a trial was ended that ran for longer than the limit."""
    return f"the trial ran for longer than its limit of {limit_s:g} s"
