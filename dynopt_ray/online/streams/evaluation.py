"""Prequential evaluation: test then learn, and compare with simple baselines."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from dynopt_ray.errors import DataError
from dynopt_ray.online.learner import LearnResult
from dynopt_ray.tasks import predicted_classes

if TYPE_CHECKING:
    from pandas import DataFrame


_REASONS = 3


class Learns(Protocol):
    """An object that can be evaluated: an `OnlineLearner`, or one with the same `learn`."""

    def learn(self, x: Any, y: Any, /) -> LearnResult:
        """Predict one event or mini-batch, then learn from it."""


def evaluate(
    stream: Iterable[tuple[Any, Any]], learner: Learns, *, window: int = 1_000
) -> "DataFrame":
    """Test then learn on a stream of classes, and return the scores over time.

    With the accuracy p of the learner and p_b of a baseline, κ = (p − p_b)/(1 − p_b). κ is 1 for a
    perfect learner and 0 for one that is as good as the baseline. The baseline of `kappa` guesses
    at random, with the frequencies of the predictions and the labels (Cohen). The baseline of
    `kappa_t` repeats the previous label (no-change). If a baseline is always right, κ is 0.

    Args:
        stream: events or mini-batches (x, y), where y holds classes.
        learner: the learner to evaluate.
        window: the number of events per row of the result, >= 1.

    Returns:
        A DataFrame with one row per `window` events; the last row has the remaining events. A
        mini-batch is never split between rows. Quarantined events are not scored. Columns:

        - `event`: the number of events so far;
        - `accuracy`, `kappa`, `kappa_t`, and the accuracies `no_change` and `majority` of these
          baselines: since the first event;
        - the same with the prefix `window_`: for the events of the row;
        - `loss`: the mean loss in the row; NaN if no event was scored;
        - `lr`: the learning rate at the end of the row;
        - `drifts`, `shrunk`, `rolled_back`, `quarantined`: their numbers in the row.

    Raises:
        ValueError: `window` is below 1.
        DataError: the targets of the stream are not classes, or every event was quarantined.

    References:
        Bifet et al. 2015, "Efficient online evaluation of big data stream classifiers": κ and
        κ_t (also called "kappa temporal" there).
    """
    import pandas as pd

    if window < 1:
        raise ValueError(f"evaluate: window is {window}; it must be at least 1 event")
    total, row, baselines = _Scores(), _Row(), _Baselines()
    rows: list[dict[str, float]] = []
    rejected: list[str] = []
    for x, y in stream:
        result = learner.learn(x, y)
        if not total.num_events:
            rejected = [*rejected, *(bad.reason for bad in result.rejected)][:_REASONS]
        for label, prediction in _labels_and_predictions(result, y) if result.rows else ():
            outcome = baselines.outcome(label, prediction)
            total.add(outcome)
            row.scores.add(outcome)
        row.add(result)
        if row.num_events >= window:
            rows.append(row.report(result.event, total))
            row = _Row()
    if row.num_events:
        rows.append(row.report(result.event, total))
    if rejected and not total.num_events:
        raise DataError(
            f"evaluate: the learner could use none of the {result.event} events of the stream; the "
            f"first reasons: {'; '.join(dict.fromkeys(rejected))}"
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Outcome:
    label: int
    prediction: int
    no_change: bool
    majority: bool


class _Baselines:
    """The baselines no-change and majority, as prequential classifiers."""

    def __init__(self) -> None:
        self._previous: int | None = None
        self._counts: Counter[int] = Counter()

    def outcome(self, label: int, prediction: int) -> _Outcome:
        """Return whether the baselines predict an event, then let them learn its label."""
        most = max(self._counts, key=self._counts.__getitem__, default=None)
        outcome = _Outcome(label, prediction, self._previous == label, most == label)
        self._previous = label
        self._counts[label] += 1
        return outcome


@dataclass
class _Scores:
    num_events: int = 0
    num_right: int = 0
    no_change: int = 0
    majority: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    predictions: Counter[int] = field(default_factory=Counter)

    def add(self, outcome: _Outcome) -> None:
        self.num_events += 1
        self.num_right += outcome.label == outcome.prediction
        self.no_change += outcome.no_change
        self.majority += outcome.majority
        self.labels[outcome.label] += 1
        self.predictions[outcome.prediction] += 1

    def report(self, prefix: str) -> dict[str, float]:
        n = max(self.num_events, 1)
        accuracy, no_change = self.num_right / n, self.no_change / n
        chance = sum(self.labels[k] * self.predictions[k] for k in self.labels) / n**2
        return {
            f"{prefix}accuracy": accuracy,
            f"{prefix}kappa": _kappa(accuracy, chance),
            f"{prefix}kappa_t": _kappa(accuracy, no_change),
            f"{prefix}no_change": no_change,
            f"{prefix}majority": self.majority / n,
        }


@dataclass
class _Row:
    scores: _Scores = field(default_factory=_Scores)
    num_events: int = 0
    loss: float = 0.0
    lr: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, result: LearnResult) -> None:
        self.num_events += len(result.rows) + len(result.rejected)
        if result.rows:
            self.loss += result.loss * len(result.rows)
        self.lr = result.lr
        self.counts["drifts"] += result.drift
        self.counts["shrunk"] += result.verdict == "shrunk"
        self.counts["rolled_back"] += result.verdict == "rolled back"
        self.counts["quarantined"] += len(result.rejected)

    def report(self, event: int, total: _Scores) -> dict[str, float]:
        return {
            "event": event,
            **total.report(""),
            **self.scores.report("window_"),
            "loss": self.loss / self.scores.num_events if self.scores.num_events else np.nan,
            "lr": self.lr,
            **self.counts,
        }


def _kappa(accuracy: float, baseline: float) -> float:
    return (accuracy - baseline) / (1 - baseline) if baseline < 1 else 0.0


def _labels_and_predictions(result: LearnResult, y: Any) -> Iterator[tuple[int, int]]:
    """Yield the label and the predicted class of each event that was learned from.

    Raises:
        DataError: the targets are not one label per event.
    """
    output = result.output
    num_events = len(result.rows) + len(result.rejected)
    labels = np.asarray(y).reshape(num_events, -1)[list(result.rows)]
    if labels.dtype.kind in "biu" and labels.shape[1] == 1 and result.targets == "labels":
        true = torch.from_numpy(labels[:, 0].astype(np.int64)).to(output.device)
        true = true.reshape(output.shape) if output.numel() == len(true) else true
        predicted = predicted_classes(output, true)
        if predicted is not None:
            yield from zip(true.flatten().tolist(), predicted.flatten().tolist(), strict=True)
            return
    raise DataError(
        f"evaluate scores classes, so y must hold one whole number per event, and the network must "
        f"give each event one logit or a score per class; here y holds {labels.dtype} and the "
        f"network's output for one event has shape {tuple(output.shape[1:])}"
    )
