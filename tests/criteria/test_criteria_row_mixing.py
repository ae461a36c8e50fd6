"""Losses and metrics that would compare the outputs of all rows with the targets of all rows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynopt_ray.criteria import separate_rows, unit_scores
from dynopt_ray.errors import DataError
from dynopt_ray.structure import trace
from dynopt_ray.tasks import Task

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1)

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")


def squares(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).square().mean()


def strict_squares(output: Tensor, targets: Tensor) -> Tensor:
    assert output.shape[1] == 1
    return squares(output[:, 0], targets)


def ranking(output: Tensor, targets: Tensor) -> Tensor:
    wanted = (targets[:, None] - targets[None]).sign()
    return F.softplus(-wanted * (output - output.flatten())).mean()


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        (X[:, :1], Y),
        (X[:, 0], Y[:, None]),
        (X[:, :1, None], Y[:, None]),
        (X[:, :1], (Y > 0).long()),
    ],
)
def test_broadcasting_over_rows_is_refused(output: Tensor, targets: Tensor) -> None:
    with pytest.raises(DataError, match=r"compares every row with every other row.*y\[:, None\]"):
        separate_rows(squares, "loss")(output, targets)


@pytest.mark.parametrize(
    "function",
    [
        lambda o, y: squares(o[:, 0], y),
        lambda o, y: squares(o.squeeze(), y),
        lambda o, y: squares(o.squeeze(-1), y),
        lambda o, y: squares(o.view(-1), y),
        lambda o, y: squares(o[..., 0], y),
        lambda o, y: squares(o, y.view_as(o)),
        lambda o, y: squares(o, y.unsqueeze(1)),
        lambda o, y: (o.mean() - y.mean()) ** 2,
        lambda o, y: squares(o[:, 0].sort().values, y.sort().values),
        strict_squares,
        ranking,
    ],
)
def test_functions_that_line_rows_up_themselves_are_left_alone(function: Any) -> None:
    assert separate_rows(function, "loss")(X[:, :1], Y) == function(X[:, :1], Y)


def test_equal_shapes_cost_one_call() -> None:
    calls = []

    def counted(output: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return squares(output, targets)

    once = separate_rows(counted, "loss")
    once(X[:, 0], Y)
    once(X[:1, :1], Y[:1])
    assert len(calls) == 2
    assert separate_rows(once, "loss") is once


@pytest.mark.parametrize("loss", [squares, F.mse_loss, nn.L1Loss()])
def test_a_task_refuses_a_loss_of_ones_own_that_broadcasts(loss: Any) -> None:
    def task(y: Tensor) -> Task:
        return Task.from_arrays(
            model=lambda: nn.Linear(3, 1), train=(X, y), validation=(X, y), loss=loss
        )

    bad = task(Y)
    model = bad.new_model(seed=0)
    with pytest.raises(DataError, match="the loss compares every row with every other"):
        bad.evaluate(model)
    with pytest.raises(DataError, match="the loss compares every row with every other"):
        bad.train_steps(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    good = task(Y[:, None])
    assert good.evaluate(model).loss == pytest.approx(loss(model(X), Y[:, None]).item(), rel=1e-5)


def test_a_task_refuses_a_metric_of_ones_own_that_broadcasts() -> None:
    task = Task.from_arrays(
        model=lambda: nn.Linear(3, 1),
        train=(X, Y),
        validation=(X, Y),
        loss=lambda o, y: squares(o[:, 0], y),
        metric=lambda o, y: -squares(o, y).item(),
    )
    with pytest.raises(DataError, match="the metric compares every row with every other"):
        task.evaluate(task.new_model())


def test_a_criterion_refuses_a_loss_that_broadcasts() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    graph = trace(model, X)
    with pytest.raises(DataError, match="every row with every other"):
        unit_scores(graph, "taylor", [(X, Y)], loss=F.mse_loss)
    assert unit_scores(graph, "taylor", [(X, Y[:, None])], loss=F.mse_loss)["0"].shape == (4,)
