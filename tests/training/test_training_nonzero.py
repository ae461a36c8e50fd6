"""Budgets of non-zero weights: what masks hold is gone, what is zero by chance may be filled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dynopt_ray.structure import trace
from dynopt_ray.tasks import Task
from dynopt_ray.training import Budget, Fraction, Greedy, Retraining, prune
from dynopt_ray.training.budgets.nonzero import NonzeroCount

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]


@pytest.mark.parametrize("recovery", [None, Greedy(share=0.1)])
def test_a_budget_of_non_zero_weights_counts_those_that_masks_left(
    blobs: Task, trained: Trained, recovery: Any
) -> None:
    model, optimizer = trained()
    graph = trace(model, blobs.example_inputs())
    prune(graph, blobs, target=Fraction(remove=0.8), granularity="weight", optimizer=optimizer)
    result = prune(
        graph,
        blobs,
        target=Budget(nonzero=0.7),
        rounds=2,
        retrain=5,
        compensate=True,
        recovery=recovery,
        optimizer=optimizer,
    )
    start = result.before.cost.nonzero
    assert start < 0.4 * result.before.cost.params
    for number, limit in ((1, 0.85), (2, 0.7)):
        assert limit * start - 15 < result.history["nonzero"][number] <= limit * start


@pytest.mark.parametrize("granularity", ["unit", "weight"])
@pytest.mark.parametrize(
    ("compensate", "retrain"),
    [(True, None), (None, Retraining(3)), (True, Retraining(3)), (None, None)],
)
def test_zeros_that_nothing_holds_do_not_count_where_they_are_filled(
    blobs: Task, trained: Trained, granularity: str, compensate: Any, retrain: Any
) -> None:
    model, optimizer = trained()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    limit = sum(p.numel() for p in model.parameters()) // 2
    result = prune(
        model,
        blobs,
        target=Budget.absolute(nonzero=limit),
        granularity=granularity,
        compensate=compensate,
        retrain=retrain,
        optimizer=optimizer,
    )
    assert limit - 40 < result.after.cost.nonzero <= limit
    if granularity == "weight" and compensate is None and retrain is None:
        assert result.after.cost.nonzero == limit


def test_the_count_is_exact_where_float32_is_not() -> None:
    model = nn.Sequential(nn.Linear(4, 4201), nn.ReLU(), nn.Linear(4201, 4201), nn.Linear(4201, 1))
    graph = trace(model, torch.zeros(2, 4))
    stays = {group.name: torch.ones(group.width, dtype=torch.bool) for group in graph}
    count = NonzeroCount(graph, lasting=True)
    assert count(stays) == sum(parameter.numel() for parameter in model.parameters())
    first = next(iter(stays))
    stays[first][:7] = False
    gone = 7 * (4 + 1 + 4201)
    assert count(stays) == sum(parameter.numel() for parameter in model.parameters()) - gone
