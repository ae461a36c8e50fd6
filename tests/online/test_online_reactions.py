from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dynopt_ray import plugins
from dynopt_ray.online import OnlineLearner, RaiseRate, Reaction, Replay, save
from dynopt_ray.online.reactions import build_reactions
from dynopt_ray.schedules import constant

NAMES = [p.name for p in plugins.plugins("reactions") if p.source == "built in"]


class At:
    """A detector that finds drift at the events told."""

    def __init__(self, *events: int) -> None:
        self.events = events
        self.seen = 0

    def update(self, _error: float) -> bool:
        self.seen += 1
        return self.seen in self.events

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def learner(
    *reactions: str | Reaction, at: tuple[int, ...] = (), lr: bool = False
) -> OnlineLearner:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return OnlineLearner(
        model,
        optimizer,
        detector=At(*at),
        reactions=reactions,
        lr=constant(0.1) if lr else None,
    )


def learn(subject: OnlineLearner, num_events: int) -> list[float]:
    x = torch.randn(num_events, 4, generator=torch.Generator().manual_seed(1))
    return [subject.learn(row, row[:3].argmax()).lr for row in x]


@pytest.mark.parametrize("scheduled", [False, True])
def test_the_raised_rate_falls_back_by_half_lives(scheduled: bool) -> None:
    subject = learner(RaiseRate(factor=5, half_life=10), at=(3,), lr=scheduled)
    rates = learn(subject, 120)
    assert rates[:3] == [0.1] * 3
    # The rate is raised for the event after the drift.
    assert rates[3] == pytest.approx(0.5)
    assert rates[13] == pytest.approx(0.3)
    assert rates[23] == pytest.approx(0.2)
    assert rates[-1] == 0.1


def test_a_second_drift_raises_the_rate_again() -> None:
    rates = learn(learner(RaiseRate(factor=5, half_life=10), at=(3, 20)), 30)
    assert rates[3] == rates[20] == pytest.approx(0.5)


def test_replay_trains_on_the_latest_events_only() -> None:
    subject, plain = learner(Replay(window=5, passes=3, batch_size=2), at=(8,)), learner()
    learn(subject, 7)
    learn(plain, 7)
    for a, b in zip(subject.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.ones(4)
    subject.learn(x, 1)
    plain.learn(x, 1)
    assert subject.updates == plain.updates + 3 * 3
    latest_x, latest_y = subject.memory.latest(5)

    def loss(of: OnlineLearner) -> float:
        return float(nn.functional.cross_entropy(of.predict(latest_x), latest_y))

    assert loss(subject) < loss(plain)


@pytest.mark.parametrize("name", NAMES)
def test_every_reaction_keeps_what_was_learned_and_restores(name: str, tmp_path: Path) -> None:
    subject = learner(name, at=(20, 45))
    learn(subject, 20)
    before = [p.detach().clone() for p in learner().model.parameters()]
    # Learning went on from the weights there were: a reset would be near the first ones.
    after = [p.detach() for p in subject.model.parameters()]
    assert any(not torch.allclose(a, b) for a, b in zip(after, before, strict=True))
    restored = learner(name, at=(20, 45))
    restored.load_state_dict(subject.state_dict())
    for of in (subject, restored):
        learn(of, 60)
        save(tmp_path / f"{of is subject}", of)
    assert (tmp_path / "True").read_bytes() == (tmp_path / "False").read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RaiseRate(factor=1),
        lambda: RaiseRate(half_life=0),
        lambda: Replay(window=0),
        lambda: Replay(passes=0),
        lambda: Replay(batch_size=0),
    ],
)
def test_settings_out_of_range_are_refused(wrong: Callable[[], Reaction]) -> None:
    with pytest.raises(ValueError, match="it must be"):
        wrong()


def test_reactions_come_by_name_or_object_one_or_many() -> None:
    replay = Replay()
    assert build_reactions(()) == ()
    assert build_reactions(replay) == (replay,)
    assert [type(r) for r in build_reactions("replay")] == [Replay]
    assert [type(r) for r in build_reactions(["raise_rate", replay])] == [RaiseRate, Replay]
