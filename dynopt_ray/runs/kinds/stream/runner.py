"""`kind: stream`: a trained network keeps learning on a stream, compared with a frozen copy."""

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
    learned,
    learner_factory,
)
from dynopt_ray.runs.kinds.stream.results import KeptResults
from dynopt_ray.runs.kinds.stream.spec import LearnerSettings, StreamSettings, StreamSpec
from dynopt_ray.runs.origin import Curves, Origin, keep_network, prepare_origin
from dynopt_ray.runs.run import Run
from dynopt_ray.tasks import Task
from dynopt_ray.training import network_bytes

Right = NDArray[np.float64]
"""One value per event: 1 if the prediction was right, 0 if wrong, NaN if the event was rejected."""


def prepare(spec: StreamSpec) -> PreparedRun:
    """Prepare to learn on a stream.

    Raises:
        SpecError: the stream's settings do not suit the task.
        DynoptError: the task or the starting network is missing or wrong.
    """
    check_learner(spec.learner)
    origin = prepare_origin(spec)
    return partial(_run, spec, origin, make_stream(origin.task, spec.stream, seed=spec.seed))


def make_stream(task: Task, settings: StreamSettings, *, seed: int) -> ArrayStream:
    """Make a stream from the rows of a task.

    Raises:
        SpecError: the task lacks a split, its rows cannot drift in the way asked for, or a drift
            would come after the end of the stream.
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
    frame = run_stream(
        run,
        origin.task,
        model,
        stream,
        settings=spec.stream,
        learner=spec.learner,
        seed=spec.seed,
        device=spec.device,
    )
    run.directory.write_results(frame)
    curves.write(run)
    keep_network(run, model, task=spec.task)


def run_stream(
    run: Run,
    task: Task,
    model: nn.Module,
    stream: ArrayStream,
    *,
    settings: StreamSettings,
    learner: LearnerSettings,
    seed: int,
    device: str,
) -> pd.DataFrame:
    """Let a copy of a trained network learn on a stream, show the progress, and write the results.

    The model itself is not changed. The state of the learner is stored in learner/.

    Args:
        run: the run that the learning is part of.
        task: the task that the network has learned.
        model: the network.
        stream: the events.
        settings: how accuracy is measured.
        learner: how the network keeps learning.
        seed: seed of the learner's own random choices.
        device: where the learner learns; in an actor, a GPU must have been reserved for it.

    Returns:
        The table that `evaluate` returns for the learner.
    """
    make = learner_factory(
        task.model,
        network_bytes(model),
        learner,
        num_events=len(stream),
        seed=seed,
        device=device,
    )
    pairs = _learned(run, make, stream, learner)
    frame: pd.DataFrame = evaluate(
        (event for event, _ in pairs), _Replay(pairs), window=settings.window
    )
    right = {"learning": _right(pairs), "frozen": _frozen(model.eval(), pairs)}
    run.directory.write_table("stream", _over_time(right, pairs, settings))
    run.outcome("drift", "Accuracy on the stream", _summary(right, settings))
    return frame


def _learned(
    run: Run, make: BuildLearner, stream: ArrayStream, settings: LearnerSettings
) -> list[LearnedEvent]:
    where = "in this process" if settings.local else "in a Ray actor"
    kept = KeptResults(run.parts)
    num_before = len(kept.results)
    pairs: list[LearnedEvent] = []
    with run.progress.stage(f"learn on the stream {where}", len(stream)) as stage:
        with nullcontext() if settings.local else session(run.address):
            start = time.perf_counter()
            for pair in learned(
                make,
                stream,
                kept,
                directory=run.directory.path / "learner",
                snapshot_every=settings.snapshot_every,
                local=settings.local,
                num_gpus=settings.num_gpus,
                deterministic=run.deterministic,
            ):
                pairs.append(pair)
                stage.advance()
            rate = (len(pairs) - num_before) / (time.perf_counter() - start)
        drifts = sum(result.drift for _, result in pairs)
        stage.result(f"{len(pairs):,} events, {rate:,.0f} per s, drifts detected: {drifts}")
    return pairs


class _Replay:
    """Passes results that are already there to `evaluate`, which expects a learner."""

    def __init__(self, pairs: Sequence[LearnedEvent]) -> None:
        self._results: Iterator[LearnResult] = (result for _, result in pairs)

    def learn(self, x: Any, y: Any) -> LearnResult:  # noqa: ARG002
        """Return the next result."""
        return next(self._results)


def _right(pairs: Sequence[LearnedEvent]) -> Right:
    return np.array(
        [
            float(int(result.output.argmax(dim=1)) == int(y)) if result.rows else np.nan
            for (_, y), result in pairs
        ]
    )


def _frozen(model: nn.Module, pairs: Sequence[LearnedEvent]) -> Right:
    """Return which events the network predicts right without learning from the stream."""
    device = next(model.parameters()).device
    x = torch.from_numpy(np.stack([x for (x, _), _ in pairs])).to(device)
    with torch.no_grad():
        predicted = torch.cat([model(rows).argmax(dim=1) for rows in torch.split(x, 1_024)])
    y = np.array([int(y) for (_, y), _ in pairs])
    right: Right = (predicted.cpu().numpy() == y).astype(np.float64)
    return right


def _over_time(
    right: Mapping[str, Right], pairs: Sequence[LearnedEvent], settings: StreamSettings
) -> pd.DataFrame:
    """Return accuracy per window, and the events at which drift began or was detected."""
    rows: list[dict[str, Any]] = []
    for name, values in right.items():
        ends = list(range(settings.window, len(values) + 1, settings.window)) or [len(values)]
        if len(values) - ends[-1] >= settings.window // 2:
            ends.append(len(values))  # a shorter window would only show noise
        for start, end in pairwise([0, *ends]):
            window = values[start:end]
            accuracy = float(np.nanmean(window)) if np.isfinite(window).any() else np.nan
            rows.append({"event": end, "series": name, "accuracy": accuracy, "mark": ""})
    marks = [(drift.at, "drift") for drift in settings.drifts]
    marks += [(event, "detected") for event, (_, result) in enumerate(pairs, 1) if result.drift]
    rows += [{"event": event, "series": "learning", "mark": mark} for event, mark in marks]
    return pd.DataFrame(rows, columns=["event", "series", "accuracy", "mark"])


def _summary(right: Mapping[str, Right], settings: StreamSettings) -> pd.DataFrame:
    """Return mean accuracies before the first drift, after the last one, and in the last window.

    `before_drift` is missing if drift begins with the first event, and `after_drift` if it lasts to
    the end of the stream. Without drift there is the mean of all events instead.
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
