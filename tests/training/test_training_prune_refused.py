"""What pruning refuses before anything has changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dynopt_ray.errors import BudgetError, EditError, UnknownNameError
from dynopt_ray.schedules import constant, linear
from dynopt_ray.tasks import Task
from dynopt_ray.training import Budget, Fraction, Greedy, Threshold, prune

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target": Budget(flops=0.01)}, BudgetError, r"lowest reachable flops is \d+ .*'0' \(1\)"),
    ({"target": Budget(flops=0.5), "granularity": "weight"}, BudgetError, "masked weights stay"),
    ({"target": Fraction(remove=0.95), "scope": "global"}, BudgetError, "only 18 can go"),
    ({"target": Budget(flops=1.5)}, EditError, "removes nothing.*are fractions of the start"),
    ({"target": Budget.absolute(flops=1e9)}, EditError, "removes nothing.*Lower the target$"),
    ({"target": 0.5}, TypeError, r"target is 0\.5; pass Budget"),
    ({"recovery": "greedy"}, TypeError, r"recovery is 'greedy'; pass Random\(\)"),
    ({"rounds": 2.5}, TypeError, r"rounds is 2\.5"),
    ({"target": Fraction(remove=0.01)}, EditError, "removes nothing"),
    ({"criterion": "magnitud"}, UnknownNameError, "Did you mean 'magnitude'"),
    ({"granularity": "units"}, UnknownNameError, "no granularity 'units'. Did you mean 'unit'"),
    ({"scope": "locally"}, UnknownNameError, "Known: global, layer"),
    ({"min_widths": {"9": 2}}, UnknownNameError, "no width group '9'"),
    ({"min_widths": {"0": 13}}, EditError, "has 12 units, so it cannot keep at least 13"),
    ({"rounds": 0}, ValueError, "rounds is 0"),
    ({"rounds": True}, TypeError, "rounds is True; it must be a whole number"),
    ({"recovery": Greedy}, TypeError, r"recovery is .*Greedy.*; pass Random\(\)"),
    ({"retrain": -1}, ValueError, "retrain is -1; it must be at least 0"),
    ({"retrain": 2.5}, TypeError, r"retrain is 2\.5; pass a number of steps or Retraining"),
    ({"retrain": True}, TypeError, "retrain is True"),
    ({"schedule": 0.5}, TypeError, r"schedule is 0\.5; pass a function of the round"),
    ({"min_widths": ["0"]}, TypeError, r"min_widths is \['0'\]; pass a mapping"),
    ({"min_widths": {"0": 2.5}}, TypeError, r"min_widths: '0' is 2\.5"),
    ({"seed": 1.5}, TypeError, r"seed is 1\.5; it must be a whole number"),
    ({"seed": -1}, ValueError, "seed is -1; it must be at least 0"),
    ({"optimizer": []}, TypeError, "0 optimizers are given, but training uses exactly one"),
    ({"optimizer": "adam"}, EditError, "'adam' is not a torch optimizer"),
    ({"target": Fraction(remove=0.01)}, EditError, "less than one of 20 units. Remove a larger"),
    ({"target": Threshold(1e-9)}, EditError, r"removes nothing: the smallest score .* is \d"),
    ({"target": Threshold(1e-9), "rounds": 2}, EditError, "removes nothing"),
    (
        {"target": Threshold(1e9), "min_widths": {"0": 12, "2": 8}},
        EditError,
        "removes nothing: all 20 units have to stay",
    ),
    ({"min_widths": {"0": 2}, "granularity": "weight"}, ValueError, "min_widths count units"),
    ({"compensate": 1}, TypeError, "compensate is 1; pass True, None, or a list"),
    ({"rounds": 2, "schedule": constant(0.5)}, ValueError, "must rise to 1"),
    ({"rounds": 2, "schedule": linear(2.0, num_steps=2, final=1.0)}, ValueError, "must rise to 1"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_changes(
    blobs: Task, trained: Trained, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model, optimizer = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"target": Fraction(remove=0.5), "optimizer": optimizer, **options}
    with pytest.raises(error, match=message):
        prune(model, blobs, **options)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_no_task_and_what_nothing_can_leave_is_refused(blobs: Task) -> None:
    with pytest.raises(TypeError, match="prune: task is None; pass a Task"):
        prune(blobs.new_model(seed=0), None, target=Fraction(remove=0.5))  # type: ignore[arg-type]
    with pytest.raises(EditError, match="the network has no units that may go"):
        prune(nn.Linear(4, 3), blobs, target=Fraction(remove=0.5))


def test_frozen_parameters_are_cut_and_not_trained(blobs: Task) -> None:
    model = blobs.new_model(seed=0).requires_grad_(False)
    with pytest.raises(EditError, match="every parameter of Sequential is frozen"):
        prune(model, blobs, target=Fraction(remove=0.5), retrain=5)
    assert model.get_parameter("0.weight").shape == (12, 4)
    prune(model, blobs, target=Fraction(remove=0.5))
    assert sum(p.numel() for p in model.parameters()) < 100
    model.get_parameter("4.weight").requires_grad_()
    before = model.get_parameter("0.bias").clone()
    prune(model, blobs, target=Fraction(remove=0.3), retrain=5, compensate=None)
    kept = model.get_parameter("0.bias")
    assert all(value in before for value in kept)


def test_a_second_fraction_of_weights_counts_those_masked_already(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    prune(model, blobs, target=Fraction(remove=0.5), granularity="weight")
    with pytest.raises(EditError, match="less than one of 84 weights in addition to the 84"):
        prune(model, blobs, target=Fraction(remove=0.5), granularity="weight")
