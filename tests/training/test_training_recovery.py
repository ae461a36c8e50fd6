"""What comes back is what was removed, bit for bit; greedy finds the useful unit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dynopt_ray.errors import PluginError
from dynopt_ray.structure import mask_of
from dynopt_ray.tasks import Task
from dynopt_ray.training import Budget, Cut, Fraction, Greedy, PruneResult, Random, Recovery, prune
from dynopt_ray.training.pruning.candidates import list_candidates
from tests.training.planted import USEFUL, USELESS, Fixed, planted

# Wrong about unit 5: it is useful, and ranked below everything.
SCORES = torch.tensor([0.2, 0.9, 0.8, 0.3, 0.4, 0.1, 0.7, 0.5])
CRITERION = Fixed({"0": SCORES}, {})


def pruned(task: Task, recovery: Recovery | None, **options: Any) -> PruneResult:
    model = task.new_model()
    options = {
        "target": Fraction(remove=0.5),
        "compensate": None,
        "criterion": CRITERION,
        **options,
    }
    return prune(model, task, recovery=recovery, **options)


def kept(result: PruneResult) -> list[int]:
    """Which of the planted units are left, found by their weights."""
    before = planted().get_parameter("0.weight")
    after = result.graph.model.get_parameter("0.weight")
    same = (before[:, None] == after[None]).all(2)
    assert same.any(0).all(), "weights have changed"
    return [int(unit) for unit in same.any(1).nonzero()[:, 0]]


def test_without_recovery_the_wrong_unit_goes(task: Task) -> None:
    assert kept(pruned(task, None)) == [1, 2, 6, 7]


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda cut: torch.zeros_like(cut.removed), "misses the target"),
        (lambda cut: torch.ones_like(cut.removed), "not part of cut.removed"),
        (lambda _: None, "gives None, not a bool tensor"),
        (lambda cut: cut.removed[:3], "not a bool tensor"),
    ],
)
def test_a_recovery_of_ones_own_is_checked(task: Task, gives: Any, message: str) -> None:
    class Own:
        share = 0.2

        def __call__(self, cut: Any) -> Tensor:
            left: Tensor = gives(cut)
            return left

    with pytest.raises(PluginError, match=f"recovery Own gives .*{message}|{message}"):
        pruned(task, Own())


@pytest.mark.parametrize("compensate", [None, True])
def test_greedy_gives_back_exactly_the_useful_unit(task: Task, compensate: bool | None) -> None:
    result = pruned(task, Greedy(share=0.2), compensate=compensate)
    assert result.history["num_returned"].tolist() == [0, 1]
    assert result.history["num_removed"].tolist() == [0, 4]
    assert kept(result) == list(USEFUL)
    assert result.after.validation.loss < 1e-4


def test_greedy_keeps_out_what_does_not_lower_the_loss(task: Task) -> None:
    model = task.new_model()
    with torch.no_grad():
        model.get_parameter("0.weight")[0] = 1.0
        model.get_parameter("2.weight")[:, list(USELESS)] = 0.0
        model.get_parameter("2.weight")[:, 0] = 1.0  # harmful; the other useless ones are idle
        model.get_parameter("2.bias")[0] += 0.1  # what is left of the loss is no rounding
    scores = torch.tensor([0.1, 0.9, 0.8, 0.2, 0.3, 0.7, 0.6, 0.4])
    result = prune(
        model,
        task,
        target=Fraction(remove=0.3),
        criterion=Fixed({"0": scores}, {}),
        compensate=None,
        recovery=Greedy(share=0.4),
    )
    assert result.history["num_removed"].tolist() == [0, 3]
    assert result.history["num_returned"].tolist() == [0, 0]
    assert result.after.validation.loss < result.before.validation.loss


def test_random_gives_back_a_share_within_the_target(task: Task) -> None:
    first, again, other = (
        pruned(task, Random(share=0.3), target=Budget(params=0.5), seed=seed) for seed in (0, 0, 1)
    )
    for result in (first, again, other):
        assert result.after.cost.params <= result.before.cost.params / 2
        assert result.history["num_returned"].iloc[1] >= 1
    assert kept(first) == kept(again)
    assert {tuple(kept(pruned(task, Random(share=0.3), seed=s))) for s in range(6)} != {
        tuple(kept(first))
    }


@pytest.mark.parametrize("recovery", [Greedy(share=0.25), Random(share=0.25)])
def test_masked_weights_come_back_as_they_were(task: Task, recovery: Recovery) -> None:
    model = task.new_model()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    target = Fraction(remove=0.5)
    result = prune(
        model, task, target=target, granularity="weight", recovery=recovery, compensate=None
    )
    assert result.history["num_removed"].iloc[1] == 20
    assert result.history["num_returned"].iloc[1] >= 1
    for name, parameter in model.named_parameters():
        keep = mask_of(parameter)
        expected = start[name] if keep is None else start[name] * keep
        assert torch.equal(parameter, expected)
    masks = [keep for p in model.parameters() if (keep := mask_of(p)) is not None]
    assert sum(int((~keep).sum()) for keep in masks) == 20


def test_greedy_trusts_measured_losses_more_than_estimates() -> None:
    # The estimate prefers 4, then 1; measured, 1 is best, then 2 with it, and 4 does harm.
    estimates = torch.tensor([0.0, 4.0, 3.0, 2.0, 5.0, 0.0])
    worth = torch.tensor([0.1, 3.0, 2.0, 0.5, -1.0, 0.0])
    measured: list[list[int]] = []

    def loss(removed: Tensor) -> float:
        measured.append(removed.nonzero()[:, 0].tolist())
        return float((worth * removed).sum())

    cut = Cut(
        candidates=list_candidates(
            {"a": torch.arange(6.0)},
            "global",
            per="mean",
            indices={"a": torch.arange(6)},
            num_gone={"a": 0},
            stays={"a": torch.zeros(6, dtype=torch.bool)},
        ),
        removed=torch.tensor([False, True, True, True, True, True]),
        num_spare=2,
        fits=lambda removed: int(removed.sum()) >= 3,
        loss=loss,
        gains=lambda _: estimates,
        generator=torch.Generator(),
    )
    stays = Greedy(share=0.4, num_steps=2, num_checked=3)(cut)
    assert stays.nonzero()[:, 0].tolist() == [3, 4, 5]
    # At first all, then without 4, 1 or 2; then, 1 being back, without 4, 2 or 3 as well.
    assert measured == [
        [1, 2, 3, 4, 5],
        [1, 2, 3, 5],
        [2, 3, 4, 5],
        [1, 3, 4, 5],
        [2, 3, 5],
        [3, 4, 5],
        [2, 4, 5],
    ]


def test_greedy_gives_back_the_weight_that_matters_most(task: Task) -> None:
    model = task.new_model()
    weights = {name: p.detach().abs() for name, p in model.named_parameters() if p.dim() > 1}
    best = int(weights["2.weight"].flatten().argmax())
    weights["2.weight"].flatten()[best] = 0.0
    weights["2.weight"].view(-1)[best] = 0.0
    criterion = Fixed({}, weights)
    losses = []
    for recovery in (None, Greedy(share=0.1, num_steps=1)):
        model = task.new_model()
        result = prune(
            model,
            task,
            target=Fraction(remove=0.4),
            granularity="weight",
            criterion=criterion,
            recovery=recovery,
        )
        losses.append(result.after.validation.loss)
        masked = mask_of(model.get_parameter("2.weight"))
        assert masked is not None
        assert bool(masked.flatten()[best]) is (recovery is not None)
    assert losses[1] < losses[0] / 2


def test_the_optimizer_state_of_what_comes_back_is_its_own(task: Task) -> None:
    model = task.new_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    task.train_steps(model, optimizer, 3)
    moments = optimizer.state[model.get_parameter("0.weight")]["exp_avg"].clone()
    result = prune(
        model,
        task,
        target=Fraction(remove=0.5),
        criterion=CRITERION,
        compensate=None,
        recovery=Greedy(share=0.2),
        optimizer=optimizer,
    )
    state = optimizer.state[result.graph.model.get_parameter("0.weight")]["exp_avg"]
    assert torch.equal(state, moments[list(USEFUL)])
