"""`kind: stream`: a trained network goes on learning on a stream, beside itself left as it is."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from dynopt_ray.cluster import session
from dynopt_ray.errors import DataError, SpecError, UnknownNameError
from dynopt_ray.online import ArrayStream, BuildLearner, LearnResult, evaluate
from dynopt_ray.runs.kind import PreparedRun
from dynopt_ray.runs.kinds.stream.learners import (
    LearnedEvent,
    check_learner,
    learned_here,
    learned_in_actor,
    learner_factory,
)
from dynopt_ray.runs.kinds.stream.spec import LearnerSettings, StreamSettings, StreamSpec
from dynopt_ray.runs.origin import Curves, Origin, keep_network, prepare_origin
from dynopt_ray.runs.run import Run
from dynopt_ray.tasks import Task
from dynopt_ray.training import network_bytes

Right = NDArray[np.float64]
"""1 where a prediction was right, 0 where it was wrong, NaN where an event was refused."""


def prepare(spec: StreamSpec) -> PreparedRun:
    """Make ready to learn on a stream.

    Raises:
        SpecError: the stream's settings do not suit the task.
        DynoptError: the task or the starting network is missing or wrong.
    """
    check_learner(spec.learner)
    origin = prepare_origin(spec)
    return partial(_run, spec, origin, make_stream(origin.task, spec.stream, seed=spec.seed))


def make_stream(task: Task, settings: StreamSettings, *, seed: int) -> ArrayStream:
    """The stream of a task's rows.

    Raises:
        SpecError: the task lacks a split or its rows cannot drift like that.
    """
    try:
        parts = [task.data[split] for split in settings.splits]
        stream = ArrayStream(
            np.concatenate([x for x, _ in parts]),
            np.concatenate([y for _, y in parts]),
            num_events=settings.num_events,
            drifts=settings.drifts,
            seed=seed,
        )
    except KeyError as error:
        raise SpecError(
            f"stream.splits: the task has no split {error}; it has {', '.join(task.splits)}"
        ) from error
    except (DataError, UnknownNameError) as error:
        raise SpecError(f"stream: {error}") from error
    for drift in settings.drifts:
        if drift.at >= len(stream):
            raise SpecError(
                f"stream: a drift at event {drift.at} never comes: there are {len(stream)} events, "
                "numbered from 0"
            )
    return stream


def _run(spec: StreamSpec, origin: Origin, stream: ArrayStream, run: Run) -> None:
    curves = Curves()
    model = origin.model(run, curves)
    frame = streamed(
        run,
        origin.task,
        model,
        stream,
        settings=spec.stream,
        learner=spec.learner,
        seed=spec.seed,
    )
    run.directory.write_results(frame)
    curves.write(run)
    keep_network(run, model, task=spec.task)


def streamed(
    run: Run,
    task: Task,
    model: nn.Module,
    stream: ArrayStream,
    *,
    settings: StreamSettings,
    learner: LearnerSettings,
    seed: int,
) -> pd.DataFrame:
    """Learn on a stream from a trained network on, with progress, and write what came of it.

    The model itself stays as it is: the learner has a copy, whose state is in learner/.

    Args:
        run: the run that this is part of.
        task: what the network has learned.
        model: the network.
        stream: what comes.
        settings: how it is measured.
        learner: how the network goes on learning.
        seed: of the learner's own randomness.

    Returns:
        What `evaluate` says of the learner.
    """
    make = learner_factory(
        task.model,
        network_bytes(model),
        learner,
        num_events=len(stream),
        seed=seed,
    )
    learned = _learned(run, make, stream, learner)
    frame: pd.DataFrame = evaluate(
        (event for event, _ in learned), _Replay(learned), window=settings.window
    )
    right = {"learning": _right(learned), "frozen": _frozen(model.eval(), learned)}
    run.directory.write_table("stream", _over_time(right, learned, settings))
    run.outcome("drift", "Accuracy on the stream", _summary(right, settings))
    return frame


def _learned(
    run: Run, make: BuildLearner, stream: ArrayStream, settings: LearnerSettings
) -> list[LearnedEvent]:
    where = "here" if settings.local else "in a Ray actor"
    learn = learned_here if settings.local else learned_in_actor
    directory = run.directory.path / "learner"
    learned: list[LearnedEvent] = []
    with run.progress.stage(f"learn on the stream, {where}", len(stream)) as stage:
        with nullcontext() if settings.local else session(run.address):
            start = time.perf_counter()
            for pair in learn(
                make, stream, directory=directory, snapshot_every=settings.snapshot_every
            ):
                learned.append(pair)
                stage.advance()
            rate = len(learned) / (time.perf_counter() - start)
        drifts = sum(result.drift for _, result in learned)
        stage.result(f"{len(learned):,} events, {rate:,.0f} per s, drifts detected: {drifts}")
    return learned


class _Replay:
    """What was learned elsewhere, told once more to `evaluate`."""

    def __init__(self, learned: Sequence[LearnedEvent]) -> None:
        self._results: Iterator[LearnResult] = (result for _, result in learned)

    def learn(self, x: Any, y: Any) -> LearnResult:  # noqa: ARG002
        """The next result."""
        return next(self._results)


def _right(learned: Sequence[LearnedEvent]) -> Right:
    return np.array(
        [
            float(int(result.output.argmax(dim=1)) == int(y)) if result.rows else np.nan
            for (_, y), result in learned
        ]
    )


def _frozen(model: nn.Module, learned: Sequence[LearnedEvent]) -> Right:
    """The same for the network as it was before the stream."""
    device = next(model.parameters()).device
    x = torch.from_numpy(np.stack([x for (x, _), _ in learned])).to(device)
    with torch.no_grad():
        predicted = torch.cat([model(rows).argmax(dim=1) for rows in torch.split(x, 1_024)])
    y = np.array([int(y) for (_, y), _ in learned])
    right: Right = (predicted.cpu().numpy() == y).astype(np.float64)
    return right


def _over_time(
    right: Mapping[str, Right], learned: Sequence[LearnedEvent], settings: StreamSettings
) -> pd.DataFrame:
    """Accuracy per window, and where there was drift and where it was detected."""
    rows: list[dict[str, Any]] = []
    for name, values in right.items():
        ends = list(range(settings.window, len(values) + 1, settings.window)) or [len(values)]
        if len(values) - ends[-1] >= settings.window // 2:
            ends.append(len(values))  # what is shorter would say little, and says it loudly
        for start, end in pairwise([0, *ends]):
            window = values[start:end]
            accuracy = float(np.nanmean(window)) if np.isfinite(window).any() else np.nan
            rows.append({"event": end, "series": name, "accuracy": accuracy, "mark": ""})
    marks = [(drift.at, "drift") for drift in settings.drifts]
    marks += [(event, "detected") for event, (_, result) in enumerate(learned, 1) if result.drift]
    rows += [{"event": event, "series": "learning", "mark": mark} for event, mark in marks]
    return pd.DataFrame(rows, columns=["event", "series", "accuracy", "mark"])


def _summary(right: Mapping[str, Right], settings: StreamSettings) -> pd.DataFrame:
    """Mean accuracies before the first drift, from the end of the last on, and at the end.

    Those of no event are left out: of before, where drift begins at once; of after, where it
    lasts to the end.
    """
    first = min((drift.at for drift in settings.drifts), default=0)
    over = max((drift.at + drift.width for drift in settings.drifts), default=0)
    rows = []
    for name, values in right.items():
        row: dict[str, Any] = {"network": name}
        if not settings.drifts:
            row["all"] = _mean(values)
        if first > 0:
            row["before_drift"] = _mean(values[:first])
        if 0 < over < len(values):
            row["after_drift"] = _mean(values[over:])
        rows.append({**row, "last_window": _mean(values[-settings.window :])})
    return pd.DataFrame(rows)


def _mean(values: Right) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
