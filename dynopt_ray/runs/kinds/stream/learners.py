"""Make learners from specs, and feed them a stream in this process or in a Ray actor."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from dynopt_ray.cluster import RemoteLearner
from dynopt_ray.devices import chosen_device
from dynopt_ray.errors import SpecError
from dynopt_ray.online import BuildLearner, DurableLearner, Event, LearnResult, OnlineLearner
from dynopt_ray.plugins import build
from dynopt_ray.runs.kinds.stream.results import KeptResults
from dynopt_ray.runs.kinds.stream.spec import LearnerSettings
from dynopt_ray.training import make_optimizer, make_rate, restored

LearnedEvent = tuple[Event, LearnResult]

_MOST_UNDER_WAY = 2_000


def learner_factory(
    factory: Callable[[], nn.Module],
    network: bytes,
    settings: LearnerSettings,
    *,
    num_events: int,
    seed: int,
    device: str = "cpu",
) -> BuildLearner:
    """Return a function that builds the same learner every time, here or in an actor.

    Args:
        factory: makes a network of the task.
        network: the weights that the learner begins with, as `network_bytes` returns them.
        settings: how it learns.
        num_events: length of the stream, for schedules that end with it.
        seed: seed of the learner's own random choices.
        device: where it learns; see `devices.chosen_device`.
    """
    return partial(_build, factory, network, settings, num_events, seed, device)


def check_learner(settings: LearnerSettings) -> None:
    """Make the detector and the reactions once, to check their arguments.

    Raises:
        SpecError: one of them refuses its arguments.
    """
    try:
        _detector(settings)
        _reactions(settings)
    except SpecError as error:
        raise SpecError(f"learner: {error}") from error


def learned(
    make: BuildLearner,
    stream: Iterable[Event],
    kept: KeptResults,
    *,
    directory: Path,
    snapshot_every: int,
    local: bool,
    num_gpus: float = 0,
    deterministic: bool = False,
) -> Iterator[LearnedEvent]:
    """Learn in this process or in a Ray actor; yield each event and its result, in order.

    Events whose results are kept come first, without learning. If this process dies, a second call
    continues where the first one stopped. Ray must be running unless `local`.

    Args:
        make: makes the learner.
        stream: the events from the first one on, the same in every call.
        kept: the results so far; new ones are added and kept.
        directory: the directory of the learner.
        snapshot_every: number of events between snapshots.
        local: whether to learn in this process.
        num_gpus: GPUs reserved for the actor.
        deterministic: whether a GPU repeats events bit for bit in the actor.
    """
    events, num_known = iter(stream), len(kept.results)
    yield from zip(islice(events, num_known), list(kept.results), strict=True)
    waiting: deque[tuple[Event, Future[LearnResult | None]]] = deque()
    learner: _Learner
    if local:
        learner = _LearnerHere(make, directory, next_event=num_known + 1)
    else:
        learner = RemoteLearner(
            make,
            directory,
            snapshot_every=None,
            next_event=num_known + 1,
            num_gpus=num_gpus,
            deterministic=deterministic,
        )
    try:
        for number, event in enumerate(events, start=num_known + 1):
            waiting.append((event, learner.learn(*event)))
            is_due = number % snapshot_every == 0
            while waiting and (is_due or len(waiting) > _MOST_UNDER_WAY):
                yield _told(waiting, kept)
            if is_due:
                kept.keep()
                learner.snapshot()
        while waiting:
            yield _told(waiting, kept)
        kept.keep()
        learner.snapshot()
    finally:
        learner.close()


class _Learner(Protocol):
    """What `RemoteLearner` and `_LearnerHere` have in common."""

    def learn(self, x: Any, y: Any) -> "Future[LearnResult | None]": ...

    def snapshot(self) -> None: ...

    def close(self) -> None: ...


class _LearnerHere:
    """A durable learner in this process."""

    def __init__(self, make: BuildLearner, directory: Path, *, next_event: int) -> None:
        self._durable = DurableLearner(make, directory, snapshot_every=None)
        self._next = next_event

    def learn(self, x: Any, y: Any) -> "Future[LearnResult | None]":
        """Learn from the next event now."""
        (result,) = self._durable.learn(self._next, [(x, y)]).results
        self._next += 1
        learned: Future[LearnResult | None] = Future()
        if isinstance(result, Exception):
            learned.set_exception(result)
        else:
            learned.set_result(result)
        return learned

    def snapshot(self) -> None:
        """Write the whole state."""
        self._durable.snapshot()

    def close(self) -> None:
        """Release the directory."""
        self._durable.close()


def _told(
    waiting: "deque[tuple[Event, Future[LearnResult | None]]]", kept: KeptResults
) -> LearnedEvent:
    """Wait for the result of the oldest event under way, and add it."""
    event, learned = waiting.popleft()
    result = learned.result()
    assert result is not None  # no event is skipped, and results since the last snapshot are kept
    kept.add(result)
    return event, result


def _build(
    factory: Callable[[], nn.Module],
    network: bytes,
    settings: LearnerSettings,
    num_events: int,
    seed: int,
    device: str,
) -> OnlineLearner:
    model = restored(factory().to(chosen_device(device)), network)
    rate = make_rate(settings.lr, num_events)
    optimizer = make_optimizer(settings.optimizer, model, lr=rate.initial)
    return OnlineLearner(
        model,
        optimizer,
        lr=rate.controller(model, optimizer) if rate.controller else rate.schedule,
        detector=_detector(settings),
        guard=settings.guard,
        reactions=_reactions(settings),
        seed=seed,
    )


def _detector(settings: LearnerSettings) -> Any:
    return None if settings.detector is None else build("detectors", settings.detector)


def _reactions(settings: LearnerSettings) -> list[Any]:
    return [build("reactions", reaction) for reaction in settings.reactions]
