import math
from typing import Any

import numpy as np
import pytest
import river.dummy
import river.metrics
import torch
from torch import Tensor, nn

from dynopt_ray.errors import DataError
from dynopt_ray.online import LearnResult, OnlineLearner, Rejected, evaluate

# river has no types for these.
metrics: Any = river.metrics
dummy: Any = river.dummy


class Oracle:
    """Gives out chosen predictions instead of learning."""

    def __init__(self, predictions: list[int], *, bad: frozenset[int] = frozenset()) -> None:
        self.predictions = predictions
        self.bad = bad
        self.events = 0

    def learn(self, _x: Any, y: Any) -> LearnResult:
        num_events = np.atleast_1d(y).size
        places = range(self.events, self.events + num_events)
        self.events += num_events
        rows = tuple(i for i, place in enumerate(places) if place not in self.bad)
        chosen = torch.tensor([self.predictions[places[i]] for i in rows])
        output: Tensor = nn.functional.one_hot(chosen, 4).float() if rows else torch.empty(0)
        rejected = tuple(Rejected(p + 1, "bad") for p in places if p in self.bad)
        return LearnResult(self.events, rows, output, 1.0, (), False, "accepted", 0.1, rejected)


def labelled(num_events: int) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(0)
    labels = rng.choice(4, p=[0.5, 0.3, 0.15, 0.05], size=num_events)
    labels = np.repeat(labels, 3)[:num_events]
    guesses = np.where(rng.random(num_events) < 0.7, labels, rng.integers(0, 4, num_events))
    return labels.tolist(), guesses.tolist()


def test_scores_are_those_of_river() -> None:
    labels, guesses = labelled(700)
    frame = evaluate(((0, y) for y in labels), Oracle(guesses), window=200)
    assert frame["event"].tolist() == [200, 400, 600, 700]
    starts = [0, 200, 400, 600]
    for row, start in enumerate(starts):
        end = frame["event"][row]
        for prefix, first in (("", 0), ("window_", start)):
            accuracy, kappa = metrics.Accuracy(), metrics.CohenKappa()
            for place in range(first, end):
                accuracy.update(labels[place], guesses[place])
                kappa.update(labels[place], guesses[place])
            assert frame[f"{prefix}accuracy"][row] == pytest.approx(accuracy.get())
            assert frame[f"{prefix}kappa"][row] == pytest.approx(kappa.get())


def test_baselines_are_those_of_river() -> None:
    labels, guesses = labelled(500)
    frame = evaluate(((0, y) for y in labels), Oracle(guesses), window=500)
    for column, model in (
        ("no_change", dummy.NoChangeClassifier()),
        ("majority", dummy.PriorClassifier()),
    ):
        accuracy = metrics.Accuracy()
        for y in labels:
            accuracy.update(y, model.predict_one({}))
            model.learn_one({}, y)
        assert frame[column][0] == pytest.approx(accuracy.get(), abs=1 / 500)
    p, p_e = frame["accuracy"][0], frame["no_change"][0]
    assert frame["kappa_t"][0] == pytest.approx((p - p_e) / (1 - p_e))


def test_mini_batches_score_like_single_events() -> None:
    labels, guesses = labelled(90)
    single = evaluate(((0, y) for y in labels), Oracle(guesses), window=30)
    batches = ((np.zeros(10), np.array(labels[i : i + 10])) for i in range(0, 90, 10))
    batched = evaluate(batches, Oracle(guesses), window=30)
    assert single.drop(columns=["drifts"]).equals(batched.drop(columns=["drifts"]))


def test_quarantined_events_are_counted_but_not_scored() -> None:
    labels, guesses = labelled(30)
    bad = frozenset({3, 4, 17})
    frame = evaluate(((0, y) for y in labels), Oracle(guesses, bad=bad), window=10)
    kept = [i for i in range(30) if i not in bad]
    assert frame["quarantined"].tolist() == [2, 1, 0]
    assert frame["accuracy"].iloc[-1] == np.mean([labels[i] == guesses[i] for i in kept])


def test_a_window_of_nothing_but_bad_events_has_no_loss() -> None:
    frame = evaluate(((0, 1) for _ in range(4)), Oracle([1] * 4, bad=frozenset({0, 1})), window=2)
    assert math.isnan(frame["loss"][0])
    assert frame["accuracy"].tolist() == [0, 1]


def test_a_stream_of_which_no_event_could_be_used_is_refused() -> None:
    with pytest.raises(DataError, match=r"none of the 5 events of the stream.*reasons: bad$"):
        evaluate(((0, 1) for _ in range(5)), Oracle([1] * 5, bad=frozenset(range(5))))


@pytest.mark.parametrize(
    ("loss", "outputs", "y"), [("mse", 1, 1.5), ("mse", 1, 1), ("mse", 3, [0, 2, 1])]
)
def test_numbers_are_not_scored_as_classes(loss: str, outputs: int, y: Any) -> None:
    model = nn.Linear(2, outputs)
    learner = OnlineLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), loss=loss)
    with pytest.raises(DataError, match="evaluate scores classes"):
        evaluate([(torch.ones(2), y)], learner)


def test_perfect_baselines_give_kappa_zero() -> None:
    frame = evaluate(((0, 1) for _ in range(10)), Oracle([1] * 10), window=5)
    assert frame["window_kappa"].tolist() == [0, 0]
    assert frame["window_kappa_t"][1] == 0


def test_a_learner_is_evaluated_before_it_learns() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    learner = OnlineLearner(model, torch.optim.SGD(model.parameters(), lr=0.0))
    x = torch.randn(20, 2)
    wanted = float((learner.predict(x).argmax(1) == 0).double().mean())
    frame = evaluate(((row, 0) for row in x), learner, window=20)
    assert frame["accuracy"][0] == wanted
    assert frame["lr"][0] == 0.0


def test_an_empty_stream_gives_an_empty_frame() -> None:
    assert evaluate([], Oracle([])).empty


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 0"):
        evaluate([], Oracle([]), window=0)
    model = nn.Flatten(0)
    linear = nn.Sequential(nn.Linear(2, 1), model)
    learner = OnlineLearner(
        linear,
        torch.optim.SGD(linear.parameters(), lr=0.1),
        loss=lambda output, target: (output - target).square().mean(),
    )
    with pytest.raises(DataError, match=r"evaluate scores classes.*shape \(\)"):
        evaluate([(torch.ones(2), 1.0)], learner)
