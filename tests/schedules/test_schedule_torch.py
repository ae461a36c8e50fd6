"""to_torch: the same rates as torch's own schedulers, and resuming bit for bit."""

import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as torch_lr

from dynopt_ray.errors import CheckpointError
from dynopt_ray.schedules import (
    Schedule,
    ScheduleLR,
    article_step,
    constant,
    cosine,
    exponential,
    linear,
    polynomial,
    sequence,
    step,
    to_torch,
)

Build = Callable[[Optimizer], torch_lr.LRScheduler]


def optimizer_of(*rates: float) -> Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    return SGD(groups, lr=0.1)


def rates_of(optimizer: Optimizer, scheduler: torch_lr.LRScheduler, num_steps: int) -> list[float]:
    rates = []
    for _ in range(num_steps):
        rates.append(float(optimizer.param_groups[-1]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "build"),
    [
        (step(0.1, gamma=0.3, period_steps=7), lambda o: torch_lr.StepLR(o, 7, gamma=0.3)),
        (exponential(0.1, gamma=0.9), lambda o: torch_lr.ExponentialLR(o, gamma=0.9)),
        (
            polynomial(0.1, num_steps=20, power=2.5),
            lambda o: torch_lr.PolynomialLR(o, total_iters=20, power=2.5),
        ),
        (
            linear(0.02, num_steps=15, final=0.1),
            lambda o: torch_lr.LinearLR(o, start_factor=0.2, total_iters=15),
        ),
        (
            cosine(0.1, num_steps=40, final=0.01),
            lambda o: torch_lr.CosineAnnealingLR(o, T_max=40, eta_min=0.01),
        ),
        (
            sequence(
                [linear(0.01, num_steps=10, final=0.1), step(0.1, gamma=0.5, period_steps=5)],
                milestones=[10],
            ),
            lambda o: torch_lr.SequentialLR(
                o,
                [torch_lr.LinearLR(o, 0.1, total_iters=10), torch_lr.StepLR(o, 5, gamma=0.5)],
                milestones=[10],
            ),
        ),
    ],
    ids=["step", "exponential", "polynomial", "linear", "cosine", "sequence"],
)
def test_equals_torchs_own_scheduler(schedule: Schedule, build: Build) -> None:
    ours, theirs = optimizer_of(0.1), optimizer_of(0.1)
    expected = rates_of(theirs, build(theirs), 40)
    assert rates_of(ours, to_torch(schedule, ours), 40) == pytest.approx(expected, rel=1e-9)


def test_the_schedule_is_the_rate_whatever_lr_the_optimizer_had() -> None:
    optimizer = optimizer_of(0.7)
    scheduler = to_torch(exponential(0.1, gamma=0.5), optimizer)
    assert isinstance(scheduler, torch_lr.LRScheduler)
    assert rates_of(optimizer, scheduler, 3) == [0.1, 0.05, 0.025]


def test_groups_keep_the_ratio_of_their_initial_rates() -> None:
    optimizer = optimizer_of(0.4, 0.04, 0.0)
    scheduler = to_torch(exponential(1.0, gamma=0.5), optimizer)
    assert scheduler.get_last_lr() == pytest.approx([1.0, 0.1, 0.0])
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.5, 0.05, 0.0])


def test_a_second_scheduler_keeps_the_first_ratios() -> None:
    optimizer = optimizer_of(0.4, 0.04)
    to_torch(constant(1e-3), optimizer)
    assert to_torch(constant(1.0), optimizer).get_last_lr() == pytest.approx([1.0, 0.1])


def test_no_ratio_to_a_first_rate_of_zero() -> None:
    with pytest.raises(ValueError, match=r"\[0.0, 0.1\].*Give the first group a rate > 0"):
        to_torch(constant(1.0), optimizer_of(0.0, 0.1))
    assert to_torch(constant(1.0), optimizer_of(0.0)).get_last_lr() == [1.0]


def test_tensor_rates_stay_the_same_tensor() -> None:
    rate = torch.tensor(0.5)
    optimizer = AdamW([nn.Parameter(torch.ones(1))], lr=rate, foreach=False, capturable=False)
    scheduler = to_torch(exponential(1.0, gamma=0.5), optimizer)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5
    scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": 2})
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.25


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1])
def test_a_rate_that_cannot_be_one_names_the_step(rate: float) -> None:
    optimizer = optimizer_of(0.1)
    scheduler = to_torch(lambda at: 0.1 if at < 2 else rate, optimizer)
    optimizer.step()
    scheduler.step()
    with pytest.raises(ValueError, match="at step 2; a rate must be finite and >= 0"):
        scheduler.step()


SCHEDULE = sequence(
    [linear(1e-3, num_steps=10, final=0.1), polynomial(0.1, num_steps=50, power=0.9)],
    milestones=[10],
)


class Run:
    """A tiny training run whose every bit depends on the rates."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.linspace(-1, 1, 8))
        self.optimizer = AdamW([{"params": [self.weight], "lr": 0.01}], weight_decay=0.1)
        self.scheduler = to_torch(SCHEDULE, self.optimizer)

    def train(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.optimizer.zero_grad()
            (self.weight**2).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.scheduler.step()


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_resumed_is_uninterrupted_bit_for_bit(optimizer_first: bool) -> None:
    whole = Run()
    whole.train(40)

    half = Run()
    half.train(23)
    file = io.BytesIO()
    state = {"optimizer": half.optimizer.state_dict(), "scheduler": half.scheduler.state_dict()}
    torch.save({**state, "weight": half.weight.detach()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Run()
    resumed.weight.data.copy_(saved["weight"])
    if optimizer_first:
        resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.scheduler.load_state_dict(saved["scheduler"])
    if not optimizer_first:
        resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.train(17)

    assert torch.equal(resumed.weight, whole.weight)
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_loading_sets_the_rate_at_once() -> None:
    run = Run()
    run.train(15)
    optimizer = optimizer_of(0.3)
    scheduler = to_torch(SCHEDULE, optimizer)
    scheduler.load_state_dict(run.scheduler.state_dict())
    assert optimizer.param_groups[0]["lr"] == SCHEDULE(15)


def test_the_last_rates_are_those_of_the_state_right_after_loading() -> None:
    schedule = exponential(1.0, gamma=0.5)
    saved, loaded = (to_torch(schedule, optimizer_of(0.4, 0.04)) for _ in range(2))
    for _ in range(3):
        saved.optimizer.step()
        saved.step()
    loaded.load_state_dict(saved.state_dict())
    assert loaded.get_last_lr() == saved.get_last_lr()
    assert loaded.get_last_lr() == pytest.approx([0.125, 0.0125])
    assert loaded.state_dict() == saved.state_dict()
    # The ratio of the groups is that of the saved run, whatever the rates were here.
    other = to_torch(schedule, optimizer_of(1.0, 1.0))
    other.load_state_dict(saved.state_dict())
    assert other.get_last_lr() == pytest.approx([0.125, 0.0125])
    assert [group["lr"] for group in other.optimizer.param_groups] == other.get_last_lr()


def test_a_state_is_a_copy() -> None:
    scheduler = to_torch(constant(1.0), optimizer_of(0.4, 0.04))
    state = scheduler.state_dict()
    scheduler.load_state_dict(state)
    state["base_lrs"][1] = 0.4
    assert scheduler.get_lr() == pytest.approx([1.0, 0.1])


def test_foreign_states_are_refused_and_change_nothing() -> None:
    scheduler = to_torch(SCHEDULE, optimizer_of(0.1))
    before = scheduler.state_dict()
    with pytest.raises(CheckpointError, match="it lacks base_lrs, step_count"):
        scheduler.load_state_dict({"last_epoch": 3})
    with pytest.raises(CheckpointError, match="2 parameter groups; this one has 1"):
        scheduler.load_state_dict(to_torch(SCHEDULE, optimizer_of(0.1, 0.2)).state_dict())
    assert scheduler.state_dict() == before


def test_only_torch_optimizers_have_a_scheduler() -> None:
    with pytest.raises(TypeError, match="not an Optimizer"):
        to_torch(SCHEDULE, "sgd")  # type: ignore[arg-type]


def test_works_inside_torchs_sequential_scheduler() -> None:
    optimizer = optimizer_of(0.1)
    first = ScheduleLR(optimizer, article_step(0.1, num_steps=9, period_steps=5))
    last = ScheduleLR(optimizer, constant(0.5))
    both = torch_lr.SequentialLR(optimizer, [first, last], milestones=[2])
    assert rates_of(optimizer, both, 4) == pytest.approx([0.1, 0.075, 0.5, 0.5])
