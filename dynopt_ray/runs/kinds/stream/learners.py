"""Make learners from specs, and feed them a stream in this process or in a Ray actor."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dynopt_ray.cluster import RemoteLearner
from dynopt_ray.devices import chosen_device
from dynopt_ray.errors import SpecError
from dynopt_ray.online import BuildLearner, DurableLearner, Event, LearnResult, OnlineLearner
from dynopt_ray.plugins import build
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


def learned_here(
    make: BuildLearner, events: Iterable[Event], *, directory: Path, snapshot_every: int
) -> Iterator[LearnedEvent]:
    """Learn in this process, with a journal as in an actor; yield each event and its result."""
    learner = DurableLearner(make, directory, snapshot_every=snapshot_every)
    try:
        for sequence, event in enumerate(events, start=learner.sequence + 1):
            (result,) = learner.learn(sequence, [event]).results
            if isinstance(result, Exception):
                raise result
            assert result is not None  # only an event that comes again has no result
            yield event, result
        learner.snapshot()
    finally:
        learner.close()


def learned_in_actor(
    make: BuildLearner,
    events: Iterable[Event],
    *,
    directory: Path,
    snapshot_every: int,
    num_gpus: float = 0,
    deterministic: bool = False,
) -> Iterator[LearnedEvent]:
    """Learn in a Ray actor, with many events in flight; yield each event and its result.

    Ray must be running. If the actor's process dies after it has learned an event but before it
    could return the result, this event is not yielded.
    """
    waiting: deque[tuple[Event, Future[LearnResult | None]]] = deque()
    with RemoteLearner(
        make,
        directory,
        snapshot_every=snapshot_every,
        num_gpus=num_gpus,
        deterministic=deterministic,
    ) as learner:
        for event in events:
            waiting.append((event, learner.learn(*event)))
            if len(waiting) > _MOST_UNDER_WAY:
                yield from _told(*waiting.popleft())
        while waiting:
            yield from _told(*waiting.popleft())


def _told(event: Event, learned: "Future[LearnResult | None]") -> Iterator[LearnedEvent]:
    result = learned.result()
    if result is not None:
        yield event, result


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
