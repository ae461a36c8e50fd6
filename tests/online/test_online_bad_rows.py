"""Mini-batches with bad rows: which rows are refused, and how much work it takes to find them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.online import OnlineLearner

ROWS = 256


class Counting(nn.Module):
    """A network that counts its forward passes, and refuses events that begin with a 9."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if (x[:, 0] == 9).any():
            raise ValueError("no nines")
        output: Tensor = self.linear(x * x)
        return output


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(ROWS) % 3


def learned(
    spoil: Callable[[Tensor, Tensor], object],
) -> tuple[OnlineLearner, list[int], list[str]]:
    """Learn a mini-batch; return the learner, the sizes of its forward passes, and the reasons."""
    torch.manual_seed(0)
    model = Counting()
    subject = OnlineLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = batch()
    spoil(x, y)
    result = subject.learn(x, y)
    return subject, model.sizes, [f"{r.event - 1}: {r.reason}" for r in result.rejected]


def not_a_number(x: Tensor, _: Tensor) -> None:
    x[100, 2] = math.nan


def unknown_class(_: Tensor, y: Tensor) -> None:
    y[100] = 7


def nine(x: Tensor, _: Tensor) -> None:
    x[100, 0] = 9


def overflow(x: Tensor, _: Tensor) -> None:
    x[100] = 3e38


CLEAN = 2 * ROWS  # rows that pass through the network: one pass tests them, one trains on them


@pytest.mark.parametrize(
    ("spoil", "reason", "most_passes"),
    [
        (not_a_number, "100: x[2] is nan", 2),
        (unknown_class, "100: y is 7; the network knows classes 0 to 2", 3),
        (nine, "100: the network refuses an event of shape (4,): no nines", 20),
        (overflow, "100: the network's output", 20),
    ],
)
def test_one_bad_row_costs_at_most_five_clean_batches(
    spoil: Callable[[Tensor, Tensor], object], reason: str, most_passes: int
) -> None:
    _, clean, none = learned(lambda *_: None)
    assert sum(clean) == CLEAN
    assert none == []
    subject, sizes, (found,) = learned(spoil)
    assert found.startswith(reason)
    assert sum(sizes) <= 5 * CLEAN
    assert len(sizes) <= most_passes
    # It has learned from exactly the other rows.
    torch.manual_seed(0)
    undisturbed = Counting()
    other = OnlineLearner(undisturbed, torch.optim.SGD(undisturbed.parameters(), lr=0.1))
    x, y = batch()
    rows = [row for row in range(ROWS) if row != 100]
    other.learn(x[rows], y[rows])
    for a, b in zip(subject.model.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_rows_of_every_kind_are_told_apart() -> None:
    def spoil(x: Tensor, y: Tensor) -> None:
        x[3, 1], x[200, 0] = math.inf, math.nan
        y[[4, 255]] = torch.tensor([-1, 3])
        x[[0, 77], 0] = 9
        x[78] = 3e38
        x[5, 3], y[5] = math.nan, 9  # two faults: the first one is told

    _, _, reasons = learned(spoil)
    refused = "the network refuses an event of shape (4,): no nines"
    assert [reason[:30] for reason in reasons] == [
        f"0: {refused}"[:30],
        "3: x[1] is inf",
        "4: y is -1; the network knows classes 0 to 2"[:30],
        "5: x[3] is nan",
        f"77: {refused}"[:30],
        "78: the network's output[0] is inf"[:30],
        "200: x[0] is nan",
        "255: y is 3; the network knows classes 0 to 2"[:30],
    ]


@pytest.mark.parametrize("spoil", [lambda x, _: x.fill_(math.nan), lambda _, y: y.fill_(3)])
def test_a_batch_without_a_good_row_takes_one_pass_at_most(
    spoil: Callable[[Tensor, Tensor], object],
) -> None:
    _, sizes, reasons = learned(spoil)
    assert len(sizes) <= 1
    assert len(reasons) == ROWS


class Together(nn.Module):
    """A network that takes any one event, but not two."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise RuntimeError("one at a time")
        output: Tensor = self.linear(x)
        return output


def test_rows_that_are_only_refused_together_are_all_refused() -> None:
    model = Together()
    subject = OnlineLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = batch()
    result = subject.learn(x, y)
    assert result.rows == ()
    assert len(result.rejected) == ROWS
    assert {r.reason[-15:] for r in result.rejected} == {": one at a time"}
