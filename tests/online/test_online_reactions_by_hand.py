"""What reactions do event by event, and errors of events, worked out by hand."""

from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.online import Guard, OnlineLearner, RaiseRate, Reaction, Replay, Widen
from dynopt_ray.online.learner.events import label_problem
from dynopt_ray.structure import trace
from tests.online.learners import SGD, events
from tests.online.learners import learner as plain_learner
from tests.online.test_online_reactions import At, learner


def test_a_boost_ends_when_it_is_below_one_per_cent() -> None:
    reaction = RaiseRate(factor=1.5, half_life=1)
    subject = learner(reaction, at=(3,))
    found = []
    for x, y in events(12):
        found.append(subject.learn(x, y).lr)
    # Event by event the excess halves: 1.015625 is the last that is above 1.01.
    boosts = [1, 1, 1, 1.5, 1.25, 1.125, 1.0625, 1.03125, 1.015625, 1, 1, 1]
    assert found == pytest.approx([0.1 * boost for boost in boosts])
    assert reaction.state_dict() == {"since": None}
    assert learner(RaiseRate(), at=(2,)).reactions[0].state_dict() == {"since": None}


class Recorded(nn.Module):
    """A linear layer that notes what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.batches: list[list[float]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.batches.append(x[:, 0].tolist())
        out: Tensor = self.linear(x)
        return out


def test_a_replay_shows_each_of_the_latest_events_once_per_pass_in_random_order() -> None:
    model = Recorded()
    subject = OnlineLearner(
        model,
        SGD(model.parameters(), lr=0.01),
        guard=Guard(window=30),  # so more events are kept than are replayed
        detector=At(20),
        reactions=Replay(window=16, passes=3, batch_size=6),
    )
    for number in range(20):
        subject.learn([float(number), 0.0, 0.0, 0.0], number % 3)
    replayed = model.batches[20:]
    assert [len(batch) for batch in replayed] == [6, 6, 4] * 3
    passes = [[*chain(*replayed[start : start + 3])] for start in (0, 3, 6)]
    for order in passes:
        assert sorted(order) == [float(number) for number in range(4, 20)]
        assert order != sorted(order)
    assert passes[0] != passes[1] != passes[2]


def widening(model: nn.Module, reaction: Reaction, *at: int) -> OnlineLearner:
    return OnlineLearner(
        model,
        SGD(model.parameters(), lr=0.01),
        structure=trace(model, torch.zeros(2, 4)),
        detector=At(*at),
        reactions=reaction,
    )


def widths_after(subject: OnlineLearner, num_events: int) -> dict[str, int]:
    for x, y in events(num_events):
        subject.learn(x, y)
    assert subject.structure is not None
    return dict(subject.structure.widths)


def test_only_groups_that_can_grow_exactly_do() -> None:
    layers = [nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    subject = widening(nn.Sequential(*layers), Widen(fraction=0.5, most=8.0), 2)
    assert widths_after(subject, 3) == {"0": 8, "2": 12}


class Aligned(nn.Module):
    """Rows of four units each: units come and go by four."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.up(x).relu().reshape(x.shape[0], -1, 4)
        out: Tensor = self.down(rows.flatten(1))
        return out


def test_growth_is_relative_to_the_width_at_the_start() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    subject = widening(model, Widen(fraction=0.25, most=1.75), 1, 2, 3, 4, 5)
    assert [widths_after(subject, 1)["0"] for _ in range(5)] == [10, 12, 14, 14, 14]
    # On a stream without end no receipt stays.
    assert subject.structure is not None
    assert not subject.structure.receipts


def test_the_widths_at_the_start_are_part_of_the_state() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    reaction = Widen(fraction=0.25, most=2.0)
    subject = widening(model, reaction, 1)
    assert reaction.state_dict() == {"first_widths": {"0": 8}}
    reaction.load_state_dict({"first_widths": {"0": 4}})
    assert widths_after(subject, 2) == {"0": 8}  # twice the four it began with


# Two sequences of three places each, with scores for two classes.
SCORES = torch.tensor(
    [[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]
)  # classes 0, 1, 0 and 1, 1, 1
LABELS = torch.tensor([[0, 1, 1], [0, 0, 1]])


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (LABELS, None),
        (LABELS[:, :2], "y has shape (2,); the network needs (3,)"),
        (LABELS[:, 0], "y has shape (); the network needs (3,)"),
        (LABELS + 1, "y is 2; the network knows classes 0 to 1"),
        (LABELS - 1, "y is -1"),
        (LABELS.double(), "y is torch.float64; classes are whole numbers, 0 to 1"),
        (LABELS.to(torch.complex64), "y is torch.complex64"),
    ],
)
def test_labels_of_sequences_are_checked(labels: Tensor, reason: str | None) -> None:
    found = label_problem(labels, SCORES)
    assert found is None if reason is None else str(found).startswith(reason)


def test_sequences_are_learned_and_scored() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x[..., None]).transpose(1, 2)
            return out

    subject = plain_learner(Tagger())
    result = subject.learn(torch.zeros(2, 3), LABELS)
    assert result.rows == (0, 1)
    wanted = result.output.argmax(1) != LABELS
    assert result.errors == pytest.approx(wanted.double().mean(1).tolist())
