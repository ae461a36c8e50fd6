"""A pool of slots in this process that take turns at random and may be lost, and its trials."""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dynopt_ray.cluster.searching.domains import tune_space
from dynopt_ray.cluster.searching.log import TrialLog
from dynopt_ray.cluster.searching.schedulers import draws_ahead, pauses
from dynopt_ray.cluster.searching.search_setup import draws, make_scheduler
from dynopt_ray.cluster.searching.space import Space
from dynopt_ray.cluster.trials import (
    KeptNetworks,
    LoopConfig,
    Measurement,
    SearchRecords,
    TrialBoard,
    TrialFiles,
    TrialLoop,
    TrialWorker,
    WorkerConfig,
    replay,
)
from dynopt_ray.cluster.trials.messages import TrialCommand, TrialEvent
from dynopt_ray.cluster.trials.pools import Slot, SlotLost
from dynopt_ray.journals import RunRecord

NUM_REPORTS = 4
SPACE = Space.parse({"x": {"low": 0.0, "high": 1.0}, "y": {"low": 1e-3, "high": 1.0, "log": True}})


class Climb:
    """A trial whose figures follow from its configurations at every step; counts its steps."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = []

    def __call__(
        self, config: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> Iterator[Measurement]:
        height, begin = (0.0, 0) if state is None else (state["height"], state["step"])
        for step in range(begin + 1, NUM_REPORTS + 1):
            self.steps.append((config["x"], step))
            height += 1 - (config["x"] - 0.3) ** 2 - config["y"] / 10
            yield Measurement(
                step=step,
                accuracy=height / NUM_REPORTS,
                cost=config["y"],
                final=step == NUM_REPORTS,
                network=lambda: f"{config['x']}".encode(),
                state=lambda h=height, s=step: {"height": h, "step": s},  # type: ignore[misc]
            )


class DriverDiedError(Exception):
    """The driver is gone."""


class TurnsPool:
    """Slots that take turns at random.

    Args:
        config: what workers need to know.
        num_slots: number of slots.
        seed: seed of the turns.
        loss: probability that a slot is lost when it should answer.
        answers_left: after so many answers the driver dies; None lets it live.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        num_slots: int,
        seed: int,
        loss: float = 0.0,
        answers_left: int | None = None,
        trial: Any = None,
    ) -> None:
        self._trial = trial or Climb()
        self._config = config
        self._random = random.Random(seed)
        self._loss = loss
        self._answers_left = answers_left
        self._num_slots = num_slots
        self._workers: dict[Slot, TrialWorker] = {}
        self._sent: dict[Slot, Sequence[TrialCommand]] = {}

    def idle(self, num_left: int) -> list[Slot]:
        while len(self._workers) < min(num_left, self._num_slots):
            self._workers[Slot(where="here")] = TrialWorker(self._trial, self._config)
        return [slot for slot in self._workers if slot not in self._sent]

    def send(self, slot: Slot, commands: Sequence[TrialCommand]) -> None:
        self._sent[slot] = commands

    def wait(self) -> list[tuple[Slot, list[TrialEvent] | SlotLost]]:
        if not self._sent:
            return []
        if self._answers_left is not None:
            self._answers_left -= 1
            if self._answers_left < 0:
                raise DriverDiedError
        slot = self._random.choice(list(self._sent))
        commands = self._sent.pop(slot)
        if self._random.random() < self._loss:
            worker = self._workers.pop(slot)
            if self._random.random() < 0.5:
                worker.advance(commands)  # it died after its work, before it could tell
            return [(slot, SlotLost("killed"))]
        return [(slot, self._workers[slot].advance(commands))]

    def close(self) -> None:
        pass


class Sink:
    """Keeps records."""

    def __init__(self, records: Sequence[RunRecord] = ()) -> None:
        self.records = list(records)

    def append(self, kind: str, /, **fields: Any) -> None:
        self.records.append(RunRecord(kind, fields))


def run(
    files: TrialFiles,
    *,
    searcher: Any = "random",
    scheduler: Any = None,
    num_trials: int = 12,
    records: Sequence[RunRecord] = (),
    in_order: bool = False,
    max_failures: int = 100,
    pack: int | None = None,
    pool: Callable[[WorkerConfig], TurnsPool],
) -> Sink:
    """Run a search, or the rest of one, and return its records, also if the driver dies."""
    board, drawer = board_of(files, searcher, scheduler, num_trials, in_order=in_order)
    kept = KeptNetworks(forget=files.forget_network)
    sink = Sink(records)
    writer = SearchRecords([sink], kept, lambda: None)
    finished = replay(records, board, kept)
    if records:
        writer.continued()
    files.store.put("probes/here", b"")
    config = WorkerConfig(
        cost_weight=0.1,
        files=files,
        probe="probes/here",
        every_state=pauses(drawer),
        together=pack is not None,
    )
    loop = TrialLoop(
        board,
        pool(config),
        writer,
        files,
        SPACE.decode,
        LoopConfig(
            per_slot=pack or 1,
            max_failures=max_failures,
            in_order=in_order,
            num_slots=3,
            draw_ahead=draws_ahead(drawer),
        ),
    )
    loop.finish(finished)
    with contextlib.suppress(DriverDiedError):
        loop.run()
    return sink


def board_of(
    files: TrialFiles, searcher: Any, scheduler: Any, num_trials: int, *, in_order: bool = False
) -> tuple[TrialBoard, Any]:
    """Return a new board, and its scheduler."""
    algorithm, num_trials = draws(searcher, SPACE, num_trials=num_trials, seed=3)
    drawer = make_scheduler(scheduler, num_reports=NUM_REPORTS, space=SPACE)
    algorithm.set_search_properties("utility", "max", tune_space(SPACE))
    drawer.set_search_properties("utility", "max")
    board = TrialBoard(
        algorithm,
        drawer,
        num_trials=num_trials,
        seed=3,
        copy_state=lambda trial, source: files.copy_state(
            source.number, source.report, trial.number, trial.report
        ),
        in_order=in_order,
    )
    return board, drawer


def table(records: Sequence[RunRecord]) -> Any:
    """Return the table of trials of a search."""
    log = TrialLog()
    for record in records:
        log.append(record.kind, **record.fields)
    return log.table()
