"""The loop of a search: fill slots, wait for events, decide, record."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynopt_ray.cluster.trials.board import Decision, TrialBoard
from dynopt_ray.cluster.trials.board_trial import ENDED, BoardTrial
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
from dynopt_ray.cluster.trials.pools import Slot, SlotLost, SlotPool
from dynopt_ray.cluster.trials.records import SearchRecords
from dynopt_ray.cluster.trials.trial_files import TrialFiles
from dynopt_ray.cluster.trials.worker import over_time

_PATIENCE_S = 60.0


@dataclass(frozen=True)
class LoopConfig:
    """How a search runs its trials.

    Attributes:
        per_slot: number of trials that share a slot.
        max_failures: how often a trial is continued after its process was lost.
        time_limit_s: the time after which a trial is ended, in seconds, or None.
        in_order: whether to decide about measurements in the order in which their trials were
            drawn, so that a search repeats with several trials at once; see `TrialTurns`. Slots
            then wait for the slowest.
        num_slots: with `in_order`, the number of slots, `num_slots` · `per_slot` trials run at a
            time. If slots are lost and not replaced, others hold more trials.
        draw_ahead: whether the scheduler wants a trial to be drawn, although others wait.
    """

    per_slot: int = 1
    max_failures: int = 3
    time_limit_s: float | None = None
    in_order: bool = False
    num_slots: int = 1
    draw_ahead: Callable[[], bool] = lambda: False


class TrialLoop:
    """Runs the trials of a search.

    Args:
        board: the state of the search.
        pool: where trials run.
        records: gets everything that happens.
        files: where states and networks are stored.
        decode: point -> configuration.
        config: how trials are run.
    """

    def __init__(
        self,
        board: TrialBoard,
        pool: SlotPool,
        records: SearchRecords,
        files: TrialFiles,
        decode: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        config: LoopConfig,
    ) -> None:
        self._board = board
        self._pool = pool
        self._records = records
        self._files = files
        self._decode = decode
        self._config = config
        self._todo: dict[Slot, list[TrialCommand]] = {}
        self._num_busy = 0
        # In order: events of trials that wait for their turn, and trials that wait for a slot.
        self._waiting: dict[int, tuple[Slot, TrialEvent]] = {}
        self._unplaced: list[int] = board.running
        self._num_members = config.per_slot
        self._filled_at = time.monotonic()
        # Trials that made their final measurement but have not ended: -> whether their network is
        # wanted. If it gets lost with its process, the last part of the trial is run again.
        self._finishing: dict[int, bool] = {}
        self._again: list[int] = []

    def finish(self, numbers: Sequence[int]) -> None:
        """End trials that made their final measurement before the search was interrupted."""
        for number in numbers:
            if self._records.keeps(number) and self._files.network(number) is None:
                self._finishing[number] = True
                self._again.append(number)
            else:
                self._end(number)

    def run(self) -> None:
        """Run until every trial has ended.

        Raises:
            RunError: a record could not be written.
            SearchError: no process for trials could be started, or the scheduler waits for trials
                that will never come.
        """
        while True:
            has_room = self._fill()
            is_idle = not (self._num_busy or self._waiting or self._unplaced)
            if is_idle and (has_room or not self._num_left):
                self._end_waiting()
                return
            for slot, answer in self._pool.wait():
                self._num_busy -= 1
                if isinstance(answer, SlotLost):
                    self._lost(slot, answer)
                else:
                    for event in answer:
                        self._arrived(slot, event)
            self._take_turns()

    def _fill(self) -> bool:
        """Send every idle slot its commands, and trials to run if it has room for them.

        Returns:
            Whether a slot is left that got nothing to do.
        """
        self._begin_round()
        has_room = False
        for slot in self._pool.idle(-(-self._num_wanted // self._config.per_slot)):
            commands = self._todo.pop(slot, [])
            while self._num_places(slot) < self._num_members:
                command = self._next_start(slot)
                if command is None:
                    break
                slot.members.add(command.number)
                commands.append(command)
            has_room |= not commands
            if commands:
                self._set_deadline(slot)
                self._pool.send(slot, commands)
                self._num_busy += 1
                self._filled_at = time.monotonic()
        return has_room

    def _num_places(self, slot: Slot) -> int:
        """Return the number of places of a slot that are taken.

        In a pack, a member that ends makes room for the next one at once. A trial that has a slot
        to itself ends first: its end would otherwise be known only when the next one has measured.
        """
        if self._num_members == 1:
            return len(slot.members)
        return len(slot.members - self._finishing.keys())

    def _begin_round(self) -> None:
        """In order: start trials until as many run as may, and let them wait for slots."""
        if not self._config.in_order:
            return
        turns = self._board.turns()
        while turns.may_start and len(self._board.running) < self._most:
            trial = self._next()
            if trial is None:
                break
            self._board.started(trial.number)
            self._unplaced.append(trial.number)
        if not self._unplaced or self._num_busy:
            self._filled_at = time.monotonic()
        elif time.monotonic() - self._filled_at > _PATIENCE_S:
            self._num_members += 1  # too few slots for this round, and none has come for a while

    @property
    def _most(self) -> int:
        return self._config.num_slots * self._config.per_slot

    @property
    def _num_left(self) -> int:
        return self._board.num_left + len(self._finishing)

    @property
    def _num_wanted(self) -> int:
        return min(self._num_left, self._most) if self._config.in_order else self._num_left

    def _next_start(self, slot: Slot) -> StartTrial | None:
        """Return the command that starts the next trial in a slot, or None if there is none."""
        if self._again:
            trial = self._board.trials[self._again.pop(0)]
            report = trial.report - 1  # so that it makes its final measurement again
        elif self._config.in_order:
            if not self._unplaced:
                return None
            trial = self._board.trials[self._unplaced.pop(0)]
            report = trial.report
        else:
            chosen = self._next()
            if chosen is None:
                return None
            trial, report = chosen, chosen.report
        self._board.started(trial.number)
        config = self._decode(trial.config)
        self._records.started(trial.number, slot.where, config)
        return StartTrial(trial.number, config, report, trial.elapsed_s)

    def _next(self) -> BoardTrial | None:
        """Return the trial to run next, or None if none can be run now."""
        self._draw_ahead()
        trial = self._board.next_trial()
        if trial is None and self._draw():
            self._draw_ahead()
            trial = self._board.next_trial()
        return trial

    def _draw_ahead(self) -> None:
        while self._config.draw_ahead() and self._draw():
            pass

    def _draw(self) -> bool:
        """Draw a trial, and return whether there was one to draw."""
        if not self._board.may_draw:
            return False
        trial = self._board.draw()
        if trial is not None:
            self._records.drawn(trial.number, trial.config, self._decode(trial.config))
        return trial is not None

    def _set_deadline(self, slot: Slot) -> None:
        limit = self._config.time_limit_s
        if limit is not None:
            trials = self._board.trials
            left = [limit - trials[number].elapsed_s for number in slot.members]
            slot.deadline = time.monotonic() + sum(max(0.0, one) for one in left)

    def _arrived(self, slot: Slot, event: TrialEvent) -> None:
        """Deal with an event, now or when it is its trial's turn."""
        if self._config.in_order and event.number not in self._finishing:
            self._waiting[event.number] = slot, event
        else:
            self._happened(slot, event)

    def _take_turns(self) -> None:
        """In order: deal with the events of a round, once all are there."""
        if not self._config.in_order:
            return
        due = self._board.turns().due
        if due and due <= self._waiting.keys():
            for number in sorted(due):
                if number in self._board.turns().due:  # it was not ended by a decision before it
                    self._happened(*self._waiting.pop(number))

    def _happened(self, slot: Slot, event: TrialEvent) -> None:
        match event:
            case TrialMeasured():
                self._measured(slot, event)
            case TrialEnded(number, note, network):
                slot.members.discard(number)
                if network is not None:
                    self._files.keep_network(number, network)
                wanted = self._finishing.pop(number, None)
                if wanted is None:
                    self._board.stopped(number, note)
                else:
                    if wanted and not self._records.keeps(number):
                        self._files.forget_network(number)  # a better one came in the meantime
                    self._end(number)
            case TrialFailed(number, error):
                slot.members.discard(number)
                if self._finishing.pop(number, None) is None:
                    self._board.failed(number, error)
                else:
                    self._end(number, "failed", error)
        self._note_ends()

    def _measured(self, slot: Slot, event: TrialMeasured) -> None:
        """Decide about a trial that made a measurement, and tell it."""
        number = event.number
        commands = self._todo.setdefault(slot, [])
        if number in self._finishing:
            commands.append(FinishTrial(number, keep=True))
            return
        if self._board.trials[number].status in ENDED:  # by a decision about another trial
            slot.members.discard(number)
            commands.append(StopTrial(number))
            return
        if event.state is not None:
            self._files.keep_state(number, event.report, event.state)
        decision = self._board.measured(
            number, event.report, event.row, elapsed_s=event.elapsed_s, has_state=event.has_state
        )
        keep = decision == "finish" and self._records.wants_network(
            number, event.row, event.row_scores
        )
        self._records.measured(event, decision)
        if number not in slot.members:
            self._decided_without_process(number, decision, keep and event.has_network)
        elif decision == "continue":
            commands.append(ContinueTrial(number))
        elif decision == "finish":
            self._finishing[number] = keep and event.has_network
            commands.append(FinishTrial(number, keep))
        else:
            slot.members.discard(number)
            commands.append(StopTrial(number))

    def _decided_without_process(self, number: int, decision: Decision, keep: bool) -> None:
        """Carry out a decision about a trial whose process was lost after it had measured."""
        if decision == "continue":
            self._unplaced.append(number)
        elif decision == "finish" and keep:
            self._finishing[number] = True
            self._again.append(number)
        elif decision == "finish":
            self._end(number)

    def _end(self, number: int, status: str = "finished", error: str = "") -> None:
        self._records.ended(number, status, error)
        self._files.forget_states(number)

    def _note_ends(self) -> None:
        """Record the trials that the board says have ended."""
        for end in self._board.take_ends():
            if end.number not in self._finishing:
                self._end(end.number, end.status, end.error)

    def _end_waiting(self) -> None:
        """End the trials that still wait, although nothing runs that they could wait for."""
        for trial in self._board.get_live_trials():
            self._board.stopped(trial.number, "its scheduler never let it go on")
        self._note_ends()

    def _lost(self, slot: Slot, loss: SlotLost) -> None:
        """Let the trials of a lost slot be continued, unless that has been tried too often."""
        self._todo.pop(slot, None)
        members = sorted(slot.members)
        running = slot.members - self._finishing.keys()
        slot.members.clear()
        for number in members:
            trial = self._board.trials[number]
            if trial.status in ENDED:
                if self._finishing[number]:
                    self._again.append(number)
                else:
                    del self._finishing[number]
                    self._end(number)
                continue
            if number in self._waiting:
                continue  # its measurement has arrived
            limit = self._config.time_limit_s
            if loss.over_time and limit is not None and len(running) == 1:
                self._arrived(slot, TrialEnded(number, over_time(limit)))
                continue
            trial.num_losses += 1
            self._records.lost(number, loss.cause)
            if trial.num_losses > self._config.max_failures:
                cause = f"its process died {trial.num_losses} times; lastly: {loss.cause}"
                self._arrived(slot, TrialFailed(number, cause))
                continue
            self._board.lost(number)
            if self._config.in_order:
                self._unplaced.append(number)
        self._note_ends()
