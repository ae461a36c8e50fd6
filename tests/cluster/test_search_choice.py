"""The winner of a search: cheap, and not to be told from the best on the validation rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from dynopt_ray.cluster.searching.choice import Candidate, chosen
from dynopt_ray.cluster.searching.driver import search
from dynopt_ray.cluster.trials import Measurement
from dynopt_ray.tasks import Task, load_task


def candidate(number: int, cost: float, scores: list[float], accuracy: float = 0.9) -> Candidate:
    return Candidate(number, cost, 0.1 * cost, accuracy, np.array(scores))


def test_the_cheapest_within_one_standard_error_wins() -> None:
    leader = candidate(0, 1.0, [1.0, 1.0, 1.0, 0.6])
    # It differs in one row by 0.4: a mean of 0.1, and a standard error of 0.1 as well.
    close = candidate(1, 0.9, [1.0, 1.0, 1.0, 0.2])
    # It is worse in every row by 0.2, which is no luck.
    worse = candidate(2, 0.1, [0.8, 0.8, 0.8, 0.4])
    assert chosen([leader, close, worse], "one_standard_error") == 1
    assert chosen([leader, worse], "one_standard_error") == 0
    assert chosen([leader, close, worse], "best") == 2  # equal accuracies: the cheapest


def test_scores_and_not_the_accuracy_decide() -> None:
    lucky = candidate(0, 0.5, [0.5, 0.5, 0.5], accuracy=0.99)
    sure = candidate(1, 0.5, [0.8, 0.8, 0.8], accuracy=0.98)
    assert chosen([lucky, sure], "one_standard_error") == 1
    assert chosen([lucky, sure], "best") == 0


@pytest.mark.parametrize("scores", [None, [1.0]])
def test_without_scores_of_rows_the_highest_utility_wins(scores: list[float] | None) -> None:
    array = None if scores is None else np.array(scores)
    trials = [Candidate(n, 0.5, 0.05, accuracy, array) for n, accuracy in enumerate((0.7, 0.9))]
    assert chosen(trials, "one_standard_error") == 1


def trial(config: Mapping[str, Any]) -> Measurement:
    """Equally good in 99 rows of 100; the more costly one is right in one row more."""
    cost = config["cost"]
    scores = [1.0] * 99 + [1.0 if cost == 0.5 else 0.0]
    return Measurement(
        step=1,
        accuracy=float(np.mean(scores)),
        cost=cost,
        row_scores=scores,
        network=lambda: f"{cost}".encode(),
    )


@pytest.mark.parametrize(("choice", "cost"), [("one_standard_error", 0.4), ("best", 0.5)])
def test_a_search_keeps_the_network_of_its_winner(choice: Any, cost: float) -> None:
    result = search(
        trial, {"cost": [0.5, 0.4]}, cost_weight=0.01, searcher="grid", local=True, choice=choice
    )
    assert result.best.cost == cost
    assert result.network == f"{cost}".encode()
    assert result.highest.cost == 0.5


def logistic() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator)
    y = (x.sum(dim=1) > 0).long()
    return Task.from_arrays(
        model=lambda: torch.nn.Linear(3, 1),
        train=(x.numpy(), y.numpy()),
        validation=(x.numpy(), y.numpy()),
        loss=lambda out, y: torch.nn.functional.binary_cross_entropy_with_logits(
            out[:, 0], y.float()
        ),
    )


@pytest.mark.parametrize("task", [load_task("digits-mlp"), logistic()], ids=["classes", "logit"])
def test_the_scores_of_rows_have_the_smooth_metric_as_their_mean(task: Task) -> None:
    model = task.new_model(seed=0)
    scores = task.row_scores(model)
    assert scores is not None
    assert len(scores) == task.evaluate(model).num_samples
    assert float(scores.mean()) == pytest.approx(task.evaluate(model).smooth)
