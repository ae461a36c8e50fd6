"""Regrowth: weights exchanged at constant sparsity, by gradient, whatever cut them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.criteria import mean_gradients
from dynopt_ray.schedules import constant
from dynopt_ray.structure import Mask, mask_of, trace
from dynopt_ray.tasks import Task
from dynopt_ray.training import Budget, Fraction, Regrowth, prune
from dynopt_ray.training.pruning.config import make_recovery
from dynopt_ray.training.pruning.regrowth import regrown

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]


def masks(model: nn.Module) -> dict[str, Tensor]:
    found = {name: mask_of(p) for name, p in model.named_parameters()}
    return {name: keep.clone() for name, keep in found.items() if keep is not None}


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rounds_beyond_the_target_exchange_as_many_as_they_drop(
    blobs: Task, trained: Trained, scope: Any
) -> None:
    model, optimizer = trained()
    result = prune(
        model,
        blobs,
        target=Fraction(remove=0.75),
        granularity="weight",
        scope=scope,
        rounds=3,
        schedule=constant(1.0),
        retrain=10,
        recovery=Regrowth(share=0.5),
        optimizer=optimizer,
    )
    num_masked = sum(int((~keep).sum()) for keep in masks(model).values())
    removed, returned = result.history["num_removed"][1:], result.history["num_returned"][1:]
    assert removed.tolist() == [num_masked, 0, 0]
    # Half of the quarter that stays, as whole weights of each layer.
    assert all(abs(number - num_masked / 6) <= 3 for number in returned)
    assert abs(num_masked - 0.75 * sum(p.numel() for p in model.parameters() if p.ndim > 1)) <= 3


def test_weights_of_earlier_cuts_return_where_the_gradient_is_largest(
    blobs: Task, trained: Trained
) -> None:
    model, _ = trained()
    graph = trace(model, blobs.example_inputs())
    weight = model.get_parameter("0.weight")
    keep = torch.ones_like(weight, dtype=torch.bool)
    keep[:6] = False
    graph.apply(Mask("0.weight", keep=keep))
    gradient = mean_gradients(model, blobs.batches("train"), blobs.loss)["0.weight"].abs()
    gone = ~keep
    prune(
        graph,
        blobs,
        target=Budget(nonzero=0.999),
        granularity="weight",
        recovery=Regrowth(share=0.02),
        compensate=None,
    )
    back = masks(model)["0.weight"] & gone
    assert back.any()
    # The network has hardly changed, so the largest gradients are where they were.
    assert gradient[back].min() >= gradient[gone & ~back].median()
    assert not weight[back].any()  # they start from zero


def test_undoing_a_round_takes_the_exchange_back(blobs: Task, trained: Trained) -> None:
    model, _ = trained()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = prune(
        model,
        blobs,
        target=Fraction(remove=0.5),
        granularity="weight",
        rounds=2,
        schedule=constant(1.0),
        recovery=Regrowth(share=0.3),
    )
    assert len(result.receipts) == 2
    for receipt in reversed(result.receipts):
        receipt.undo()
    assert masks(model) == {}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name])


def test_each_scope_gives_back_by_its_own_rule() -> None:
    keeps = {"a": torch.tensor([False, False, True]), "b": torch.tensor([False, False, False])}
    dropped = {"a": torch.tensor([False, True, False]), "b": torch.tensor([True, True, True])}
    gradients = {"a": torch.tensor([5.0, -9.0, 99.0]), "b": torch.tensor([1.0, -3.0, 2.0])}
    found = {
        scope: {
            n: k.tolist()
            for n, k in regrown(keeps, dropped, gradients, number=2, scope=scope).items()
        }
        for scope in ("global", "layer")
    }
    assert found["global"] == {"a": [True, True, True], "b": [False, False, False]}
    assert found["layer"] == {"a": [False, True, True], "b": [False, True, False]}


def test_it_is_refused_where_it_makes_no_sense(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    with pytest.raises(ValueError, match="use granularity='weight' with it"):
        prune(model, blobs, target=Fraction(remove=0.5), recovery=Regrowth())
    with pytest.raises(ValueError, match="Regrowth: share is 1"):
        Regrowth(share=1)
    assert make_recovery({"name": "regrowth", "share": 0.2}) == Regrowth(share=0.2)
