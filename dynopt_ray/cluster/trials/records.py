"""The records of a search, from which everything about it can be read, and from which it continues.

There is a record, with its time, for everything that happens: "drawn", "started", "measured" (with
what was decided about the trial), "lost", "ended", "continued" when a driver takes a search up
again, and "pack" if the size of packs was measured. A board is rebuilt by telling it the same in
the same order. Tables and reports need no board: they follow from the records alone.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from dynopt_ray.cluster.trials.board import Decision, TrialBoard
from dynopt_ray.cluster.trials.board_trial import ENDED, BoardTrial, StateOf
from dynopt_ray.cluster.trials.front import KeptNetworks
from dynopt_ray.cluster.trials.messages import TrialMeasured
from dynopt_ray.cluster.trials.plain_values import from_json, to_json
from dynopt_ray.errors import RunError
from dynopt_ray.journals import RunRecord


class RecordSink(Protocol):
    """Takes records, e.g. a journal."""

    def append(self, kind: str, /, **fields: Any) -> None:
        """Add a record."""


class SearchRecords:
    """Writes the records of a search.

    Args:
        sinks: get every record, in order.
        kept: knows whose networks are kept.
        on_end: called after each trial has ended.
    """

    def __init__(
        self, sinks: Iterable[RecordSink], kept: KeptNetworks, on_end: Callable[[], None]
    ) -> None:
        self._sinks = tuple(sinks)
        self._kept = kept
        self._on_end = on_end

    def drawn(self, number: int, point: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Record the configuration of a new trial."""
        self._add("drawn", trial=number, point=point, config=config)

    def started(self, number: int, where: str, config: Mapping[str, Any]) -> None:
        """Record that a trial runs in a process, and its configuration, which may have changed."""
        self._add("started", trial=number, where=where, config=config)

    def measured(self, event: TrialMeasured, decision: Decision) -> None:
        """Record a measurement, and what was decided about the trial."""
        self._add(
            "measured",
            trial=event.number,
            report=event.report,
            row=event.row,
            elapsed_s=event.elapsed_s,
            has_state=event.has_state,
            decision=decision,
            row_scores=event.row_scores,
        )

    def lost(self, number: int, cause: str) -> None:
        """Record that the process of a trial is gone."""
        self._add("lost", trial=number, cause=cause)

    def ended(self, number: int, status: str, error: str = "") -> None:
        """Record the end of a trial."""
        self._add("ended", trial=number, status=status, error=error)
        self._on_end()

    def packed(self, size: int | None, note: str) -> None:
        """Record the measured number of trials of a pack; None if there are no packs."""
        self._add("pack", size=size, note=note)

    def continued(self) -> None:
        """Record that a driver takes the search up again."""
        self._add("continued")

    def wants_network(
        self, number: int, row: Mapping[str, Any], scores: Sequence[float] | None
    ) -> bool:
        """Return whether the network of a trial that made its final measurement is to be kept."""
        return self._kept.offer(number, row, scores)

    def keeps(self, number: int) -> bool:
        """Return whether the network of a finished trial is to be kept."""
        return number in self._kept

    def _add(self, kind: str, **fields: Any) -> None:
        at = round(time.time(), 3)
        for sink in self._sinks:
            sink.append(kind, **to_json(fields), at=at)


def replay(records: Iterable[RunRecord], board: TrialBoard, kept: KeptNetworks) -> list[int]:
    """Tell a board what happened before, and check that it decides as it did then.

    Returns:
        The trials that made their final measurement but whose end was not recorded.

    Raises:
        RunError: the board decides otherwise. The searcher or the scheduler is not the one of the
            records, or draws at random without a seed.
    """
    copies: dict[int, tuple[StateOf, int]] = {}

    def note(trial: BoardTrial, source: StateOf) -> None:
        copies[trial.number] = source, trial.report

    copy_state, board.copy_state = board.copy_state, note
    open_ends = _told(records, board, kept)
    board.interrupted()
    board.copy_state = copy_state
    for number, (source, report) in copies.items():
        trial = board.trials[number]
        if trial.report == report and trial.status not in ENDED:
            copy_state(trial, source)  # in case the driver died before it was done
    board.take_ends()
    return open_ends


def _told(records: Iterable[RunRecord], board: TrialBoard, kept: KeptNetworks) -> list[int]:
    open_ends: set[int] = set()
    for record in records:
        match record.kind:
            case "drawn":
                trial = board.draw()
                _check(trial is not None and to_json(trial.config) == record["point"], record)
            case "started":
                board.started(record["trial"])
            case "measured":
                row = from_json(record["row"])
                decision = board.measured(
                    record["trial"],
                    record["report"],
                    row,
                    elapsed_s=record["elapsed_s"],
                    has_state=record["has_state"],
                )
                _check(decision == record["decision"], record)
                if decision == "finish":
                    kept.offer(record["trial"], row, record["row_scores"])
                    open_ends.add(record["trial"])
            case "lost":
                board.trials[record["trial"]].num_losses += 1
                board.lost(record["trial"])
            case "ended":
                open_ends.discard(record["trial"])
                _ended(board, record)
            case "continued":
                board.interrupted()
    return sorted(open_ends)


def _ended(board: TrialBoard, record: RunRecord) -> None:
    """Tell a board of an end, unless it has decided on it itself."""
    if board.trials[record["trial"]].status in ENDED:
        return
    if record["status"] == "failed":
        board.failed(record["trial"], record["error"])
    else:
        board.stopped(record["trial"], record["error"])


def _check(is_same: bool, record: RunRecord) -> None:
    if not is_same:
        raise RunError(
            f"the search cannot be continued: for trial {record['trial']}, its searcher or "
            f"scheduler now decides otherwise than before ({record.kind}). Continue with the same "
            "objects, from the same seed; the results so far can be read in any case"
        )
