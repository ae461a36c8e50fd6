from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dynopt_ray import plugins
from dynopt_ray.errors import LearnerError
from dynopt_ray.online import OnlineLearner, RaiseRate, Reaction, Replay, Widen, load, save
from dynopt_ray.online.drift.reaction import build_reactions
from dynopt_ray.schedules import constant
from dynopt_ray.structure import Mask, Shrink, trace

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
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return OnlineLearner(
        model,
        optimizer,
        structure=trace(model, torch.zeros(2, 4)),
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


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_drift_anywhere_in_a_mini_batch_is_one_of_the_mini_batch(at: int) -> None:
    subject = learner(RaiseRate(factor=5, half_life=10), at=(at,))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    results = [subject.learn(x, x[:, :3].argmax(1)) for _ in range(2)]
    assert [result.drift for result in results] == [at <= 3, at > 3]
    assert subject.rates.boost > 4


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
    subject, plain = learner(name, at=(20, 45)), learner(at=(20, 45))
    learn(subject, 20)
    learn(plain, 20)
    # A reset would forget the latest events; no reaction does.
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    losses = [
        float(nn.functional.cross_entropy(of.predict(x), x[:, :3].argmax(1)))
        for of in (subject, plain)
    ]
    assert losses[0] < losses[1] + 1e-5
    save(tmp_path / "saved", subject)
    restored = learner(name, at=(20, 45))
    torch.rand(3)
    load(tmp_path / "saved", restored)
    for of in (subject, restored):
        learn(of, 60)
        save(tmp_path / f"{of is subject}", of)
    assert (tmp_path / "True").read_bytes() == (tmp_path / "False").read_bytes()


def test_growing_changes_no_output_and_the_optimizer_comes_along() -> None:
    subject, plain = learner("grow", at=(10,)), learner(at=(10,))
    learn(subject, 10)
    learn(plain, 10)
    x = torch.randn(20, 4)
    torch.testing.assert_close(subject.predict(x), plain.predict(x))
    parameters = dict(subject.model.named_parameters())
    assert parameters["0.weight"].shape == (10, 4)
    for parameter in parameters.values():
        moments = subject.optimizer.state[parameter]["momentum_buffer"]
        assert moments.shape == parameter.shape
    before = parameters["2.weight"][:, 8:].clone()
    learn(subject, 5)
    assert not torch.equal(parameters["2.weight"][:, 8:], before)


def test_growth_has_a_limit() -> None:
    subject = learner(Widen(fraction=0.5, most=2.0), at=tuple(range(1, 10)))
    learn(subject, 20)
    assert subject.structure is not None
    assert subject.structure.widths == {"0": 16}


def test_growth_does_not_depend_on_the_process_around_it(tmp_path: Path) -> None:
    for disturbance in (0, 7):
        subject = learner("grow", at=(3, 6))
        torch.rand(disturbance)
        learn(subject, 20)
        save(tmp_path / str(disturbance), subject)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "7").read_bytes()


def test_masked_and_shrunk_networks_restore_into_the_original(tmp_path: Path) -> None:
    subject = learner()
    keep = torch.rand(6, 4, generator=torch.Generator().manual_seed(2)) > 0.5
    subject.resize([Shrink("0", remove=[1, 5]), Mask("0.weight", keep=keep)])
    learn(subject, 10)
    save(tmp_path / "saved", subject)
    restored = learner()
    load(tmp_path / "saved", restored)
    for of in (subject, restored):
        learn(of, 20)
        save(tmp_path / f"{of is subject}", of)
    assert (tmp_path / "True").read_bytes() == (tmp_path / "False").read_bytes()
    assert not restored.model.get_parameter("0.weight")[~keep].any()


def test_growing_needs_the_structure() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(LearnerError, match=r"'grow' needs.*structure=trace"):
        OnlineLearner(model, optimizer, reactions="grow")
    with pytest.raises(LearnerError, match=r"build it with structure=trace"):
        OnlineLearner(model, optimizer).resize([])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RaiseRate(factor=1),
        lambda: Widen(fraction=0),
        lambda: Widen(most=1),
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
