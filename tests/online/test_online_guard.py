import math

import pytest
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn

from dynopt_ray.online import ArrayStream, Drift, Guard, OnlineLearner, Replay, evaluate
from dynopt_ray.online.learner.guard import UpdateBackup


class Scalar(nn.Module):
    """One weight w; the output for every event is w, so that V(w) can be worked out by hand."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x))


def weight_of(learner: OnlineLearner) -> float:
    (parameter,) = learner.model.parameters()
    return parameter.item()


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def guarded(value: float, *, lr: float, guard: Guard) -> OnlineLearner:
    model = Scalar(value)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    return OnlineLearner(model, optimizer, loss=squared, guard=guard)


@pytest.mark.parametrize(
    ("lr", "max_halvings", "verdict", "weight"),
    [
        # w = 1, window at 0: V = 1. The event at 3 proposes the step lr·4.
        (0.01, 5, "accepted", 1.04),  # V = 1.0816 <= 1.11
        (0.1, 5, "shrunk", 1.05),  # 1.4 -> 1.2 -> 1.1 -> 1.05: V = 1.1025 <= 1.11
        (0.1, 2, "rolled back", 1.0),
        (0.1, 0, "rolled back", 1.0),
    ],
)
def test_a_step_is_accepted_shrunk_or_rolled_back(
    lr: float, max_halvings: int, verdict: str, weight: float
) -> None:
    guard = Guard(window=4, tolerance=0.11, max_halvings=max_halvings)
    learner = guarded(1.0, lr=lr, guard=guard)
    learner.memory.add(torch.zeros(4), torch.zeros(4))
    result = learner.learn(0.0, 3.0)
    assert result.verdict == verdict
    assert weight_of(learner) == pytest.approx(weight)


def test_the_window_holds_the_events_before_the_present_one() -> None:
    learner = guarded(1.0, lr=0.2, guard=Guard(window=3, tolerance=0.0, max_halvings=0))
    # The event itself judges the first step: towards it is accepted.
    assert learner.learn(0.0, 3.0).verdict == "accepted"
    # Now the window is that event: a step away from it is refused, though it fits the new one.
    assert learner.learn(0.0, -3.0).verdict == "rolled back"
    # Both are in the window now; half-way between them is best, so a step back is accepted.
    assert learner.learn(0.0, 0.0).verdict == "accepted"


def test_the_window_is_the_guards_own_where_a_reaction_keeps_more() -> None:
    model = Scalar(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(window=2, tolerance=0.05, max_halvings=0)
    reaction = Replay(window=8)
    learner = OnlineLearner(model, optimizer, loss=squared, guard=guard, reactions=[reaction])
    learner.memory.add(torch.zeros(8), torch.tensor([*[-10.0] * 6, 10.0, 0.0]))
    # From 1 to 1.4: V falls from 41 to 37.96 on the latest two. It nearly doubles on the last one,
    # and on all eight it rises from 101 to 106.96, by more than a twentieth.
    assert learner.learn(0.0, 3.0).verdict == "accepted"
    assert learner.memory.capacity == 8


def test_a_shrunk_step_leaves_whole_numbers_and_statistics() -> None:
    class Counted(Scalar):
        def __init__(self) -> None:
            super().__init__(1.0)
            self.number = nn.Parameter(torch.tensor(3), requires_grad=False)
            self.seen: Tensor
            self.register_buffer("seen", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen += 1
            return super().forward(x) + 0 * self.number

    model = Counted()
    optimizer = torch.optim.SGD([model.w], lr=0.1, momentum=0.5)
    guard = Guard(window=4, tolerance=0.11)
    learner = OnlineLearner(model, optimizer, loss=squared, guard=guard)
    learner.memory.add(torch.zeros(4), torch.zeros(4))
    assert learner.learn(0.0, 3.0).verdict == "shrunk"
    assert model.w.item() == pytest.approx(1.05)
    assert model.number.item() == 3
    assert model.seen.item() == 1
    # The optimizer has seen the whole gradient.
    assert optimizer.state[model.w]["momentum_buffer"].item() == pytest.approx(-4.0)


def test_rolling_back_is_bit_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    learner = OnlineLearner(model, optimizer)
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    learner.learn(x, y)
    before = learner.state_dict()
    # The window says the opposite of what is to be learned.
    learner.guard = Guard(tolerance=0.0, max_halvings=0)
    learner.memory.capacity = 8
    learner.memory.add(x, (y + 1) % 3)
    assert learner.learn(x, y).verdict == "rolled back"
    after = learner.state_dict()
    torch.testing.assert_close(after["model"], before["model"], rtol=0, atol=0)
    moments = (after["optimizer"]["state"], before["optimizer"]["state"])
    torch.testing.assert_close(*moments, rtol=0, atol=0)


def test_rolling_back_the_first_step_leaves_no_optimizer_state() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    restore = UpdateBackup(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    restore.roll_back()
    assert not optimizer.state


def test_a_step_to_nan_is_rolled_back() -> None:
    learner = guarded(1.0, lr=math.inf, guard=Guard())
    assert learner.learn(0.0, 3.0).verdict == "rolled back"
    assert weight_of(learner) == 1.0


@pytest.mark.parametrize(
    ("before", "after", "accepted"),
    [
        (2.0, 2.5, True),  # 2 + 0.25·2, at the limit
        (2.0, 2.51, False),
        (-2.0, -1.5, True),  # -2 + 0.25·|-2|: a loss below zero may rise, too
        (-2.0, -1.49, False),
        (-2.0, -2.4, True),
        (0.0, 0.0, True),
        (0.0, 1e-9, False),
        (1.0, math.nan, False),
        (math.inf, math.inf, False),
        (math.inf, 1.0, True),
        (1.0, -math.inf, False),
    ],
)
def test_the_tolerance_is_relative_to_the_size_of_the_loss(
    before: float, after: float, accepted: bool
) -> None:
    assert Guard(tolerance=0.25).accepts(before=before, after=after) is accepted


def test_a_guarded_learner_takes_steps_where_the_loss_is_below_zero() -> None:
    model = Scalar(1.0)

    def below_zero(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean() - 100.0

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    learner = OnlineLearner(model, optimizer, loss=below_zero, guard=Guard(tolerance=0.05))
    learner.memory.add(torch.ones(4), torch.ones(4))
    # V rises from -100 to -99.9984, by far less than a twentieth of 100.
    assert learner.learn(0.0, 3.0).verdict == "accepted"
    assert weight_of(learner) == pytest.approx(1.04)


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"tolerance": -0.1}, {"tolerance": math.nan}, {"max_halvings": -1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"Guard: {next(iter(wrong))} is"):
        Guard(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("lr", "gain"), [(0.03, -0.01), (0.1, 0.01), (0.3, 0.2)])
def test_the_guard_saves_a_rate_that_is_too_high_and_costs_a_good_one_nothing(
    lr: float, gain: float
) -> None:
    digits = load_digits()
    x = (digits.data / 16).astype("float32")
    accuracy = {}
    for guard in (None, Guard()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        learner = OnlineLearner(model, optimizer, guard=guard)
        stream = ArrayStream(x, digits.target, num_events=800, drifts=[Drift(at=400)])
        accuracy[guard] = evaluate(stream, learner)["accuracy"].iloc[-1]
    assert accuracy[Guard()] > accuracy[None] + gain
