"""The state of a search: its trials, its searcher and its scheduler.

What a search does next follows from what has happened so far, and from nothing else. A board is
told what happens, in order, and says what to do. Told the same again, it says the same, so a search
continues from a record of what happened.

Tune's searchers and schedulers make the decisions. Tune's own controller is not used: it saves the
state of no scheduler, and it starts an actor and waits for a timer for every trial. Schedulers see
a `BoardTrial` in place of Tune's trial and this board in place of Tune's controller.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynopt_ray.cluster.trials.board_trial import (
    ENDED,
    PAUSED,
    PENDING,
    RUNNING,
    BoardTrial,
    StateOf,
)
from dynopt_ray.cluster.trials.plain_values import plain
from dynopt_ray.cluster.trials.turns import TrialTurns
from dynopt_ray.errors import SearchError

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

Decision = Literal["continue", "stop", "pause", "finish"]
CopyState = Callable[[BoardTrial, StateOf], object]

_DECISIONS: Mapping[str, Decision] = {
    "CONTINUE": "continue",
    "PAUSE": "pause",
    "STOP": "stop",
    "NOOP": "pause",
}


@dataclass(frozen=True)
class TrialEnd:
    """The end of a trial.

    Attributes:
        number: the trial.
        status: "finished", "stopped" or "failed".
        error: why it failed, or why it was stopped by something else than a scheduler.
    """

    number: int
    status: str
    error: str = ""


class TrialBoard:
    """The trials of a search, and what Tune's schedulers expect of Tune's controller.

    Args:
        searcher: draws configurations.
        scheduler: decides how long trials run.
        num_trials: total number of trials.
        seed: seed of Python's and NumPy's global generators during calls to the searcher and the
            scheduler, some of which draw from them. Outside these calls nothing changes.
        copy_state: called when a scheduler makes a trial continue from the state of another.
        in_order: whether decisions are made in the order of drawing; see `TrialTurns`. Trials whose
            process is lost then keep running, as far as the scheduler is concerned.

    Attributes:
        ends: the trials that have ended since `take_ends` was last called.
    """

    search_alg = None
    """Tune's schedulers look for the search algorithm here, to refuse some of them."""

    def __init__(
        self,
        searcher: "Searcher",
        scheduler: "TrialScheduler",
        *,
        num_trials: int,
        seed: int,
        copy_state: CopyState,
        in_order: bool = False,
    ) -> None:
        self._searcher = searcher
        self._scheduler = scheduler
        self._num_trials = num_trials
        self.copy_state = copy_state
        self._trials: list[BoardTrial] = []
        self._ends: list[TrialEnd] = []
        self._num_ended = 0
        self._copies: list[tuple[BoardTrial, StateOf]] = []
        self._is_exhausted = False
        self._in_order = in_order
        self._turns = TrialTurns()
        self._globals: tuple[Any, Any] = _seeded(seed)
        self._are_own = False

    # What the search asks.

    @property
    def trials(self) -> tuple[BoardTrial, ...]:
        """All trials, in the order of drawing."""
        return tuple(self._trials)

    @property
    def may_draw(self) -> bool:
        """Whether another trial may be drawn."""
        return not self._is_exhausted and len(self._trials) < self._num_trials

    @property
    def num_left(self) -> int:
        """The number of trials that have not ended, including those that are yet to be drawn."""
        total = self._num_trials if self.may_draw else len(self._trials)
        return total - self._num_ended

    @property
    def running(self) -> list[int]:
        """The trials that run."""
        return [trial.number for trial in self._trials if trial.status == RUNNING]

    def turns(self) -> TrialTurns:
        """Return whose turn it is; begin a new round if the last one is over."""
        if self._in_order:
            self._turns.advance(self.running)
        return self._turns

    def next_trial(self) -> BoardTrial | None:
        """Return the trial that the scheduler wants to run next, or None."""
        with self._own_globals():
            chosen: Any = self._scheduler.choose_trial_to_run(self)  # type: ignore[arg-type]
        return chosen if isinstance(chosen, BoardTrial) else None

    def take_ends(self) -> list[TrialEnd]:
        """Return the trials that have ended since the last call."""
        ends, self._ends = self._ends, []
        return ends

    # What happens.

    def draw(self) -> BoardTrial | None:
        """Draw a trial; return None if the searcher has no configuration left."""
        number = len(self._trials)
        with self._own_globals():
            point = self._searcher.suggest(trial_id(number))
        if point is None:
            return None
        if isinstance(point, str):  # Searcher.FINISHED
            self._is_exhausted = True
            return None
        return self.add(point)

    def add(self, point: Mapping[str, Any]) -> BoardTrial:
        """Add a trial with the point that was drawn for it."""
        trial = BoardTrial(len(self._trials), plain(point), self._copies)
        self._trials.append(trial)
        with self._own_globals():
            self._scheduler.on_trial_add(self, trial)  # type: ignore[arg-type]
        return trial

    def started(self, number: int) -> None:
        """Note that a trial runs (again). One that has ended only gives its network again."""
        trial = self._trials[number]
        if trial.status not in ENDED | {RUNNING}:
            self.turns().started(number)
            trial.status = RUNNING

    def measured(
        self, number: int, report: int, row: Mapping[str, Any], *, elapsed_s: float, has_state: bool
    ) -> Decision:
        """Decide about a running trial that has made a measurement."""
        trial = self._trials[number]
        self.turns().taken(number)
        trial.report, trial.elapsed_s = report, elapsed_s
        if has_state:
            trial.state = StateOf(number, report)
        result = _result(trial, row)
        if row["final"]:
            trial.last_result = result
            self._complete(trial, TrialEnd(number, "finished"))
            return "finish"
        with self._own_globals():
            verdict = self._scheduler.on_trial_result(self, trial, result)  # type: ignore[arg-type]
            trial.last_result = result
            if verdict != "STOP":
                self._searcher.on_trial_result(trial.trial_id, result)
        decision = _DECISIONS[verdict]
        if decision == "stop":
            self._complete(trial, TrialEnd(number, "stopped"))
        elif decision == "pause":
            trial.status = PAUSED
        return decision

    def failed(self, number: int, error: str) -> None:
        """Note that a trial has failed."""
        trial = self._trials[number]
        self.turns().taken(number)
        self._end(trial, "ERROR", TrialEnd(number, "failed", error))
        with self._own_globals():
            self._scheduler.on_trial_error(self, trial)  # type: ignore[arg-type]
            self._searcher.on_trial_complete(trial.trial_id, error=True)

    def stopped(self, number: int, note: str) -> None:
        """Note that a trial has ended without a final measurement."""
        self.turns().taken(number)
        self._complete(self._trials[number], TrialEnd(number, "stopped", note))

    def lost(self, number: int) -> None:
        """Note that the process of a running trial is gone; the trial will be continued.

        The scheduler is not told. The trial will report what it would have reported.
        """
        trial = self._trials[number]
        if trial.status == RUNNING and not self._in_order:
            trial.status = PENDING

    def interrupted(self) -> None:
        """Note that the processes of all trials are gone, because the driver was."""
        for trial in self._trials:
            self.lost(trial.number)

    # What Tune's schedulers call.

    def get_trials(self) -> list[BoardTrial]:
        """Return all trials."""
        return self._trials

    def get_live_trials(self) -> list[BoardTrial]:
        """Return the trials that have not ended."""
        return [trial for trial in self._trials if trial.status not in ENDED]

    def stop_trial(self, trial: BoardTrial) -> None:
        """End a trial early."""
        if trial.status in ENDED:
            return
        if trial.status == RUNNING:
            self._complete(trial, TrialEnd(trial.number, "stopped"))
            return
        self._scheduler.on_trial_remove(self, trial)  # type: ignore[arg-type]
        self._searcher.on_trial_complete(trial.trial_id)
        self._end(trial, "TERMINATED", TrialEnd(trial.number, "stopped"))

    def pause_trial(self, trial: BoardTrial, should_checkpoint: bool = True) -> None:
        """Let a trial wait until the scheduler chooses it."""
        del should_checkpoint  # its state has been stored already
        trial.status = PAUSED

    def _schedule_trial_save(self, trial: BoardTrial, result: Any = None) -> StateOf:
        """Return the state of a trial after its latest measurement."""
        del result
        if trial.state is None:
            raise SearchError(
                f"trial {trial.number} gives no state, but the scheduler lets trials continue from "
                "the states of others; yield Measurement(…, state=…) and accept `state`"
            )
        return trial.state

    def has_resources_for_trial(self, trial: BoardTrial) -> bool:
        """Return True: the search asks for a trial when it has room for one."""
        del trial
        return True

    def _complete(self, trial: BoardTrial, end: TrialEnd) -> None:
        with self._own_globals():
            self._scheduler.on_trial_complete(self, trial, trial.last_result)  # type: ignore[arg-type]
            self._searcher.on_trial_complete(trial.trial_id, result=trial.last_result or None)
        self._end(trial, "TERMINATED", end)

    def _end(self, trial: BoardTrial, status: str, end: TrialEnd) -> None:
        trial.status = status
        self._num_ended += 1
        self._ends.append(end)

    @contextmanager
    def _own_globals(self) -> Iterator[None]:
        """Use own states of Python's and NumPy's global generators; then copy states of trials."""
        if self._are_own:  # a scheduler that was called has called back
            yield
            return
        before = (random.getstate(), np.random.get_state())
        random.setstate(self._globals[0])
        np.random.set_state(self._globals[1])
        self._are_own = True
        try:
            yield
        finally:
            self._are_own = False
            self._globals = (random.getstate(), np.random.get_state())
            random.setstate(before[0])
            np.random.set_state(before[1])
        while self._copies:
            trial, source = self._copies.pop()
            self.copy_state(trial, source)
            trial.state = StateOf(trial.number, trial.report)


def trial_id(number: int) -> str:
    """Return the id by which searchers and schedulers know a trial."""
    return f"{number:05d}"


def _result(trial: BoardTrial, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a measurement in the form that Tune's searchers and schedulers expect."""
    return {
        **row,
        "training_iteration": trial.report,
        "time_total_s": trial.elapsed_s,
        "trial_id": trial.trial_id,
        "done": bool(row["final"]),
        "config": dict(trial.config),
    }


def _seeded(seed: int) -> tuple[Any, Any]:
    return random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state()
