"""The checks of a retraining: when they come, what they look at, and which state remains."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from dynopt_ray.schedules import Schedule, constant, sequence, to_torch
from dynopt_ray.tasks import Task, TrainStats
from dynopt_ray.training import Plateau, Retraining
from dynopt_ray.training.retraining.retraining import _joined, as_retraining

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]


def retrained(
    blobs: Task, trained: Trained, retraining: Retraining
) -> tuple[nn.Module, Optimizer, TrainStats]:
    model = trained()[0]
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    stats = retraining(blobs, model, optimizer, generator=torch.Generator().manual_seed(1))
    return model, optimizer, stats


def bad_from(step: int) -> Schedule:
    """A rate that ruins the network from a step on."""
    return sequence([constant(0.01), constant(300.0)], milestones=[step])


@pytest.mark.parametrize(
    ("num_checks", "milestone"),
    [
        (2, 10),  # the last check alone is worse
        (4, 10),  # the last two are
        (4, 5),
        (4, 15),
    ],
)
def test_a_state_that_got_worse_is_left_for_the_best_before_it(
    blobs: Task, trained: Trained, num_checks: int, milestone: int
) -> None:
    rate = bad_from(milestone)
    model, optimizer, stats = retrained(blobs, trained, Retraining(20, rate, num_checks=num_checks))
    assert stats.num_steps == 20
    states = []  # after each part of the same training
    for end in range(20 // num_checks, 21, 20 // num_checks):
        other = Parts(blobs, trained, rate).trained(end, 20 // num_checks)
        states.append((blobs.evaluate(other.model).smooth, other))
    smooth, best = max(states, key=lambda state: state[0])
    assert smooth > states[-1][0]
    for parameter, wanted in zip(model.parameters(), best.model.parameters(), strict=True):
        assert torch.equal(parameter, wanted)
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(momentum, best.optimizer.state[wanted]["momentum_buffer"])


class Parts:
    """The same training without checks, some steps at a time."""

    def __init__(self, task: Task, trained: Trained, rate: Schedule) -> None:
        self.task, self.rate = task, rate
        self.model = trained()[0]
        self.optimizer = SGD(self.model.parameters(), lr=0.05, momentum=0.9)

    def trained(self, num_steps: int, at_once: int) -> "Parts":
        generator = torch.Generator().manual_seed(1)
        scheduler = to_torch(self.rate, self.optimizer)
        for _ in range(num_steps // at_once):
            self.task.train_steps(
                self.model, self.optimizer, at_once, generator=generator, schedule=scheduler
            )
        return self


def test_of_states_that_are_equally_good_the_first_remains(blobs: Task, trained: Trained) -> None:
    """At a rate of zero nothing moves but the momentum."""
    for patience in (None, 1, 2):
        retraining = Retraining(20, constant(0.0), num_checks=5, patience=patience)
        model, optimizer, stats = retrained(blobs, trained, retraining)
        # The first check finds a better state than none; each one after it does not.
        assert stats.num_steps == (20 if patience is None else 4 * (1 + patience))
        first = Parts(blobs, trained, constant(0.0)).trained(4, 4)
        for parameter, wanted in zip(model.parameters(), first.model.parameters(), strict=True):
            momentum = optimizer.state[parameter]["momentum_buffer"]
            assert torch.equal(momentum, first.optimizer.state[wanted]["momentum_buffer"])


def test_patience_begins_anew_at_each_better_state() -> None:
    """One weight, whose error a step at the rate r multiplies by 1 - 2r."""
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    task = Task.from_arrays(
        model=lambda: nn.Linear(1, 1, bias=False), train=(x, x), validation=(x, x), loss="mse"
    )
    wanted = [1 / 2, 1.0, 1 / 4, 1 / 2, 1 / 8, 1 / 4, 1 / 2, 1.0]  # the error after each step
    # Where the error grows the rate is negative, which no schedule may give.
    rates = [(1 - after / before) / 2 for before, after in itertools.pairwise([1.0, *wanted])]

    class Told(SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["lr"] = rates[len(done)]
            done.append(super().step(closure))

    done: list[Any] = []
    model = task.new_model(seed=0)
    nn.init.constant_(model.get_parameter("weight"), 2.0)
    optimizer = Told(model.parameters(), lr=0.1)
    stats = Retraining(8, num_checks=8, patience=3)(
        task, model, optimizer, generator=torch.Generator()
    )
    # Worse than the best are the checks 2 and 4, and 6, 7 and 8 in a row.
    assert stats.num_steps == 8
    assert model.get_parameter("weight").item() == pytest.approx(1 + 1 / 8)
    done.clear()
    nn.init.constant_(model.get_parameter("weight"), 2.0)
    stats = Retraining(8, num_checks=8, patience=2)(
        task, model, optimizer, generator=torch.Generator()
    )
    assert stats.num_steps == 7


def test_a_controller_observes_the_validation_loss_of_each_check(
    blobs: Task, trained: Trained
) -> None:
    seen: list[float] = []

    class Noted(Plateau):
        def observe(self, loss: float) -> bool:
            assert loss == blobs.evaluate(self.model).loss
            seen.append(loss)
            return super().observe(loss)

    retrained(blobs, trained, Retraining(12, num_checks=4, controller=Noted))
    assert len(set(seen)) == 4


def test_checks_come_at_even_distances(blobs: Task, trained: Trained) -> None:
    steps: list[int] = []
    model = trained()[0]
    optimizer = SGD(model.parameters(), lr=0.0)

    class Counting(Plateau):
        def observe(self, loss: float) -> bool:
            steps.append(num_steps)
            return super().observe(loss)

    num_steps = 0

    def count(*_: Any) -> None:
        nonlocal num_steps
        num_steps += 1

    optimizer.register_step_post_hook(count)
    for total, checks, wanted in ((7, 3, [2, 5, 7]), (10, 4, [2, 5, 8, 10]), (3, 3, [1, 2, 3])):
        steps.clear()
        num_steps = 0
        retraining = Retraining(total, num_checks=checks, controller=Counting)
        stats = retraining(blobs, model, optimizer, generator=torch.Generator())
        assert steps == wanted
        assert stats.num_steps == num_steps == total
        assert stats.num_samples == total * 50


def test_statistics_of_parts_are_weighted_by_their_steps() -> None:
    parts = [
        TrainStats(mean_loss=4.0, last_loss=3.0, num_steps=1, num_samples=10),
        TrainStats(mean_loss=1.0, last_loss=0.5, num_steps=3, num_samples=25),
    ]
    assert _joined(parts) == TrainStats(
        mean_loss=(4.0 + 3 * 1.0) / 4, last_loss=0.5, num_steps=4, num_samples=35
    )


def test_no_steps_are_no_retraining() -> None:
    assert as_retraining("retrain", 0, least=0) is None
    assert as_retraining("retrain", None, least=0) is None
    assert as_retraining("retrain", 3, least=0) == Retraining(3)
    assert as_retraining("train", 1, least=1) == Retraining(1)
    with pytest.raises(TypeError, match="train is None; pass a number of steps"):
        as_retraining("train", None, least=1)
    with pytest.raises(ValueError, match="retrain is -1"):
        as_retraining("retrain", -1, least=0)
