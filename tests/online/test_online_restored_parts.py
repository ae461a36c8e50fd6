"""Single parts of a learner's state: each is put back, and each that does not fit is refused."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError, DataError
from dynopt_ray.online import Guard, OnlineLearner, Replay
from dynopt_ray.structure import Mask, Shrink, mask_of, trace
from tests.online.learners import SGD, events, learner, network, state_bytes


def two_groups(first: float, second: float) -> Callable[..., torch.optim.Optimizer]:
    def make(parameters: object) -> torch.optim.Optimizer:
        several = list(parameters)  # type: ignore[call-overload]
        groups = [{"params": several[:2], "lr": first}, {"params": several[2:], "lr": second}]
        return SGD(groups)

    return make


def rates_of(subject: OnlineLearner) -> list[float]:
    return [group["lr"] for group in subject.optimizer.param_groups]


def test_the_seed_is_part_of_the_state(tmp_path: Path) -> None:
    subject, restored = (learner(network(dropout=0.5), seed=seed) for seed in (5, 0))
    for event in events(5):
        subject.learn(*event)
    restored.load_state_dict(subject.state_dict())
    for of in (subject, restored):
        for event in events(5, seed=1):
            of.learn(*event)
        assert of.generator().initial_seed() == learner(seed=5).generator().initial_seed()
    assert state_bytes(restored, tmp_path) == state_bytes(subject, tmp_path)


def test_updates_and_draws_never_share_a_seed() -> None:
    seeds: list[int] = []

    class Watched(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if self.training:
                seeds.append(torch.initial_seed())
            return super().forward(input)

    subject = learner(Watched(4, 3))
    for event in events(40):
        subject.learn(*event)
    drawn = {subject.generator().initial_seed() for _ in range(40)}
    assert len(set(seeds)) == len(drawn) == 40
    assert drawn.isdisjoint(seeds)


def test_each_group_keeps_its_own_rate_under_a_boost() -> None:
    subject = learner(optimizer=two_groups(0.1, 0.01))
    x, y = events(1)[0]
    subject.rates.boost = 3.0
    subject.learn(x, y)
    assert rates_of(subject) == pytest.approx([0.3, 0.03])
    subject.rates.boost = 1.0
    subject.learn(x, y)
    assert rates_of(subject) == [0.1, 0.01]


def test_a_boost_ends_in_the_restored_learner_as_in_the_other() -> None:
    subject = learner(optimizer=two_groups(0.1, 0.01))
    x, y = events(1)[0]
    subject.rates.boost = 3.0
    subject.learn(x, y)
    # Its own rates are those of the saved learner, whatever the optimizer is made with here.
    restored = learner(optimizer=two_groups(0.5, 0.5))
    restored.load_state_dict(subject.state_dict())
    assert restored.rates.boost == 3.0
    assert rates_of(restored) == pytest.approx([0.3, 0.03])
    restored.rates.boost = 2.0
    restored.learn(x, y)
    assert rates_of(restored) == pytest.approx([0.2, 0.02])
    again = learner(optimizer=two_groups(0.5, 0.5))
    again.load_state_dict(subject.state_dict())
    again.rates.boost = 1.0
    again.learn(x, y)
    assert rates_of(again) == pytest.approx([0.1, 0.01])


def test_what_is_loaded_shares_nothing_with_the_state() -> None:
    def masked() -> OnlineLearner:
        model = network()
        built = learner(model, structure=trace(model, torch.zeros(2, 4)))
        built.resize([Mask("0.weight", keep=torch.eye(6, 4) < 1)])
        return built

    subject, restored = masked(), masked()
    for event in events(3):
        subject.learn(*event)
    state = subject.state_dict()
    kept = copy.deepcopy(state)
    restored.load_state_dict(state)
    state["masks"]["0.weight"].fill_(True)
    state["model"]["0.weight"].fill_(7.0)
    for entry in state["optimizer"]["state"].values():
        entry["momentum_buffer"].fill_(7.0)
    for event in events(3, seed=1):
        restored.learn(*event)
        subject.learn(*event)
    weight = restored.model.get_parameter("0.weight")
    assert torch.equal(mask_of(weight), kept["masks"]["0.weight"])  # type: ignore[arg-type]
    assert torch.equal(weight, subject.model.get_parameter("0.weight"))


def test_widths_come_back_from_a_narrower_state() -> None:
    def traced() -> OnlineLearner:
        model = network()
        return learner(model, structure=trace(model, torch.zeros(2, 4)))

    subject, restored = traced(), traced()
    subject.resize([Shrink("0", remove=[0, 3])])
    restored.load_state_dict(subject.state_dict())
    x = torch.stack([x for x, _ in events(5)])
    assert restored.structure is not None
    assert restored.structure.widths == {"0": 4}
    assert torch.equal(restored.predict(x), subject.predict(x))


class Longer(nn.Sequential):
    """The same tensors as without its last module."""

    def __init__(self) -> None:
        super().__init__(*network().children(), nn.Identity())


def traced_learner() -> OnlineLearner:
    model = network()
    return learner(model, structure=trace(model, torch.zeros(2, 4)))


def unequal_groups(size: int) -> OnlineLearner:
    def make(parameters: object) -> torch.optim.Optimizer:
        several = list(parameters)  # type: ignore[call-overload]
        return SGD([{"params": several[:size]}, {"params": several[size:]}], lr=0.1)

    return learner(optimizer=make)


def without_bias() -> OnlineLearner:
    model = network()
    model[4] = nn.Linear(6, 3, bias=False)  # type: ignore[operator]
    return learner(model)


REFUSED: dict[str, tuple[Callable[[], OnlineLearner], Callable[[], OnlineLearner], str]] = {
    "structure": (
        traced_learner,
        learner,
        "only one of .* has the network's str",
    ),
    "no structure": (
        learner,
        traced_learner,
        "only one of .* has the network's str",
    ),
    "a module more": (learner, lambda: learner(Longer()), "only one of .* has the module '5'"),
    "a module less": (lambda: learner(Longer()), learner, "only one of .* has the module '5'"),
    "a tensor more": (learner, without_bias, r"only the network has '4\.bias'"),
    "a tensor less": (without_bias, learner, r"only the state has '4\.bias'"),
    "precision": (
        learner,
        lambda: learner(network().double()),
        r"torch\.float64 in the state but .* torch\.float32 in the network",
    ),
    "groups": (lambda: unequal_groups(1), lambda: unequal_groups(2), r"\[1, 3\] .* \[2, 2\]"),
    "number of groups": (
        learner,
        lambda: unequal_groups(2),
        r"has 1 parameter groups, but the state has the rates of 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_state_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    make, other, message = REFUSED[case]
    subject, foreign = make(), other()
    dtype = next(foreign.model.parameters()).dtype
    for x, y in events(3):
        subject.learn(x, y)
        foreign.learn(x.to(dtype), y)
    before = state_bytes(subject, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        subject.load_state_dict(foreign.state_dict())
    assert state_bytes(subject, tmp_path) == before


def test_what_was_rejected_comes_back_in_place_of_what_is_there() -> None:
    subject, restored = learner(), learner()
    subject.learn([float("nan")] * 4, 0)
    for _ in range(3):
        restored.learn([0.0] * 3, 0)
    restored.load_state_dict(subject.state_dict())
    assert restored.quarantine.total == 1
    assert list(restored.quarantine.latest) == list(subject.quarantine.latest)


@pytest.mark.parametrize(
    ("window", "reactions", "capacity"),
    [
        (5, [Replay(window=3), Replay(window=9)], 9),
        (5, [Replay(window=9), Replay(window=3)], 9),
        (12, [Replay(window=3), Replay(window=9)], 12),
        (None, [Replay(window=3)], 3),
        (4, [], 4),
        (None, [], 0),
    ],
)
def test_as_many_events_are_kept_as_the_most_demanding_part_wants(
    window: int | None, reactions: list[Replay], capacity: int
) -> None:
    guard = None if window is None else Guard(window=window)
    assert learner(guard=guard, reactions=reactions).memory.capacity == capacity


def test_a_frozen_copy_knows_the_shape_of_events() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    subject = learner(model)
    frozen = subject.freeze()
    subject.learn(torch.ones(2, 2), 1)
    with pytest.raises(DataError, match=r"shape \(3, 2\).*shape \(2, 2\)"):
        subject.freeze().predict(torch.ones(3, 2))
    assert subject.freeze().predict(torch.ones(2, 2)).shape == (3,)
    assert subject.freeze().predict(torch.ones(5, 2, 2)).shape == (5, 3)
    # Before the first event a matrix is a mini-batch of rows.
    assert frozen.predict(torch.ones(5, 4)).shape == (5, 3)


def test_a_frozen_copy_is_in_eval_mode_and_without_gradients() -> None:
    model = network(dropout=0.5)
    subject = learner(model)
    frozen, x = subject.freeze(), torch.ones(6, 4)
    assert torch.equal(frozen.predict(x), frozen.predict(x))
    assert torch.equal(frozen.predict(x), subject.predict(x))
    assert not frozen.predict(x).requires_grad
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
