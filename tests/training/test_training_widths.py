"""Widths as the target of `prune`: each group keeps what it was given, its most important units."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.criteria import unit_scores
from dynopt_ray.errors import EditError, UnknownNameError
from dynopt_ray.structure import Shrink, trace
from dynopt_ray.tasks import Task
from dynopt_ray.training import Budget, Fraction, Greedy, Random, Target, Threshold, prune
from dynopt_ray.training.budgets.widths import share_of

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]


def test_each_group_keeps_its_most_important_units(blobs: Task, trained: Trained) -> None:
    model, _ = trained()
    by_hand, _ = trained()
    result = prune(model, blobs, target={"0": 7, "2": 8}, compensate=None)
    assert result.after.widths == {"0": 7, "2": 8}
    incoming = by_hand.get_parameter("0.weight").square().sum(1)
    norms = incoming + by_hand.get_parameter("0.bias").square()
    norms = norms + by_hand.get_parameter("2.weight").square().sum(0)
    kept = sorted(norms.topk(7).indices.tolist())
    trace(by_hand, blobs.example_inputs()).apply(Shrink("0", keep=kept))
    assert all(map(torch.equal, model.state_dict().values(), by_hand.state_dict().values()))


def test_rounds_approach_the_widths_by_shares(blobs: Task, trained: Trained) -> None:
    model, optimizer = trained()
    options: dict[str, Any] = {"rounds": 3, "retrain": 5, "optimizer": optimizer}
    history = prune(model, blobs, target={"0": 5, "2": 7}, **options).history
    assert history["width/0"].tolist() == [12, 10, 8, 5]  # 7 units in thirds, rounded down
    assert history["width/2"].tolist() == [8, 8, 8, 7]
    assert history["num_removed"].tolist() == [0, 2, 2, 4]


def test_shares_are_not_lost_to_rounding() -> None:
    assert 100 * 0.29 < 29
    assert share_of(100, 0.29) == 29
    assert share_of(100, 0.29, step=4) == 28


def test_widths_may_be_numpy_integers_and_those_there_are(blobs: Task, trained: Trained) -> None:
    target: Any = {"0": np.int64(12), "2": np.int64(3)}
    result = prune(trained()[0], blobs, target=target)
    assert result.after.widths == {"0": 12, "2": 3}


class Residual(nn.Module):
    """Two layers that make one width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y: Tensor = self.head(x + self.second(x))
        return y


class Aligned(nn.Module):
    """Its width must be a multiple of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if x.shape[-1] % 4:
            raise ValueError("rows must be aligned")
        y: Tensor = self.down(x)
        return y


def test_any_producer_of_a_group_names_it(blobs: Task) -> None:
    torch.manual_seed(0)
    model = Residual()
    result = prune(model, blobs, target={"second": 4})
    assert result.after.widths == {"first": 4}
    with pytest.raises(
        EditError, match=r"'second' is to keep 2 .* 'first', which is to keep 3 by another"
    ):
        prune(model, blobs, target={"first": 3, "second": 2})


def test_rounds_go_in_the_steps_of_a_group(blobs: Task) -> None:
    torch.manual_seed(0)
    model = Aligned()
    with pytest.raises(EditError, match="cannot keep 6, because it shrinks in steps of 4"):
        prune(model, blobs, target={"up": 6})
    history = prune(model, blobs, target={"up": 4}, rounds=3).history
    assert history["width/up"].tolist() == [12, 12, 8, 4]


@pytest.mark.parametrize(
    ("target", "width"),
    [
        (Budget(flops=0.7), 8),
        (Budget(flops=0.5), 4),
        (Fraction(remove=0.6), 8),
        (Fraction(remove=0.7), 4),
        (Threshold(1e9), 4),
    ],
)
@pytest.mark.parametrize("recovery", [None, Random(share=0.2), Greedy(share=0.2)])
def test_other_targets_keep_to_the_steps_too(
    blobs: Task, target: Target, width: int, recovery: Any
) -> None:
    torch.manual_seed(0)
    model = Aligned()
    result = prune(model, blobs, target=target, recovery=recovery)
    removed = result.history["num_removed"].iloc[1]
    assert result.after.widths["up"] == 12 - removed
    assert removed % 4 == 0
    if recovery is None:
        assert result.after.widths["up"] == width
        model = Aligned()
        kept = unit_scores(trace(model, blobs.example_inputs()), "magnitude")["up"].topk(width)
        before = model.up.weight.detach().clone()
        prune(model, blobs, target=target)
        assert torch.equal(model.up.weight, before[kept.indices.sort().values])


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target": {}}, EditError, r"target \{\} removes nothing"),
    ({"target": {"0": 12, "2": 8}}, EditError, "removes nothing; give at least one group fewer"),
    ({"target": {"0": 13}}, EditError, "'0' has 12 units and cannot keep 13; give a whole number"),
    ({"target": {"0": 0}}, EditError, "cannot keep 0; give a whole number from 1 to 12"),
    ({"target": {"0": 6.0}}, EditError, r"cannot keep 6\.0"),
    ({"target": {"0": True}}, EditError, "cannot keep True"),
    ({"target": {"O": 6}}, UnknownNameError, "no width group 'O'"),
    ({"target": {"4": 2}}, EditError, "'4' cannot be resized"),
    ({"target": ["0", 6]}, TypeError, r"target is \['0', 6\]; pass Budget"),
    ({"granularity": "weight"}, EditError, "gives widths, which granularity='weight'"),
    ({"recovery": Random()}, EditError, "pass recovery=None"),
    ({"min_widths": {"0": 7}}, EditError, "keeps 6 units of '0', but min_widths says at least 7"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_changes(
    blobs: Task, trained: Trained, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model, _ = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"target": {"0": 6}, **options}
    with pytest.raises(error, match=message):
        prune(model, blobs, **options)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
